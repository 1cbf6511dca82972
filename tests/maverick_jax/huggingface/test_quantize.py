"""int8 and int4 exports: arithmetic compared with the compressed-tensors library, and folders run by transformers."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.huggingface.names import table
from maverick_jax.huggingface.quantize import (
    BITS,
    IGNORED,
    Quantization,
    dequantize,
    pack,
    quantize,
    quantized_views,
    unpack,
)
from maverick_jax.pretrained import export, load_pretrained, save_pretrained
from tests.helpers.folders import tensors_of
from tests.parity.oracle import (
    VISION,
    our_model,
    random_parameters,
    random_tokens,
    shapes,
    torch_logits,
    variant,
)

CONFIG = variant(
    hidden_size=64,
    head_dim=16,
    intermediate_size=32,
    intermediate_size_mlp=128,
    num_hidden_layers=4,
    num_local_experts=2,
)
PARAMETERS = random_parameters(shapes(CONFIG))
KINDS = pytest.mark.parametrize("kind", BITS)


def library(kind: str, group_size: int):
    """(the library's compressor, its scheme) for our config."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(Quantization(kind, group_size).config_json())
    return BaseCompressor.get_value_from_registry(config.format), config.config_groups["group_0"]


def by_library(kind: str, group_size: int, packed: np.ndarray, scale: np.ndarray, shape) -> np.ndarray:
    """float32: the weight as the library decompresses it, in the scale's dtype."""
    import torch

    exact = torch.from_numpy(scale.astype(np.float32)).to(getattr(torch, str(scale.dtype)))  # no rounding
    compressor, scheme = library(kind, group_size)
    state = {"weight_packed": torch.from_numpy(packed), "weight_scale": exact, "weight_shape": torch.tensor(shape)}
    return compressor.decompress(state, scheme)["weight"].float().numpy()


def slow_pack(values: np.ndarray, bits: int) -> np.ndarray:
    """The definition, value by value, in Python integers."""
    words = np.zeros((len(values), values.shape[1] * bits // 32), np.uint32)
    for r, c in np.ndindex(values.shape):
        word, shift = divmod(c * bits, 32)
        words[r, word] |= np.uint32((int(values[r, c]) + 2 ** (bits - 1)) << shift)
    return words.view(np.int32)


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.oracles
@KINDS
def test_pack_equals_its_definition_and_the_librarys(kind):
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits = BITS[kind]
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 64)).astype(np.int8)
    packed = pack(values, bits)
    np.testing.assert_array_equal(packed, slow_pack(values, bits))
    np.testing.assert_array_equal(packed, pack_to_int32(torch.from_numpy(values), bits).numpy())
    np.testing.assert_array_equal(unpack(packed, bits), values)


@pytest.mark.oracles
@KINDS
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_library_decompresses_to_our_values(kind, group_size, dtype):
    x = np.random.default_rng(1).normal(size=(5, 256)).astype(np.float32)
    x[0] = 0  # a group without a scale
    x[1, 3] = 1e-30
    x[2] *= 1e-38
    values, scale = quantize(x, BITS[kind], group_size, jnp.dtype(dtype))
    assert scale.shape == (5, 256 // group_size) and scale.dtype == dtype and np.isfinite(scale).all()
    ours = dequantize(values, scale)
    assert ours.dtype == dtype
    theirs = by_library(kind, group_size, pack(values, BITS[kind]), scale, x.shape)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs)
    # Half a step, plus as much for a largest value without a code and for the rounding of the scale.
    step = np.repeat(scale.astype(np.float32), group_size, 1)
    assert (np.abs(theirs - x) <= 0.5 * step * (1 + 2**-7 * 2 ** BITS[kind]) + 1e-37).all()


# ---- folders -------------------------------------------------------------------------------------------------------


def dequantized_parameters(folder: pathlib.Path, parameters: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """`parameters` with the quantized ones replaced by the dequantized values of the folder."""
    found, tensors = {name: p.copy() for name, p in parameters.items()}, tensors_of(folder)
    for entry in table({name: p.shape for name, p in parameters.items()}):
        for view in quantized_views(entry, parameters[entry.ours].shape):
            packed, scale = (tensors[f"{view.name}_{part}"] for part in ("packed", "scale"))
            assert tensors[f"{view.name}_shape"].tolist() == list(view.shape)
            weight = dequantize(unpack(packed, BITS[kind]), scale).astype(np.float32)
            index = tuple(slice(None) if at is None else at for at in view.fixed)
            found[entry.ours][index] = weight.T
    return found


@pytest.mark.oracles
@KINDS
@pytest.mark.parametrize("images", [False, True])
def test_transformers_runs_a_quantized_folder(kind, images, tmp_path):
    """In compressed form: every key is used, and the logits are those of our model with the dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = variant(**{**CONFIG.model_dump(), "vision": VISION.model_dump() if images else None})
    parameters = random_parameters(shapes(config)) if images else PARAMETERS
    folder = tmp_path / "out"
    save_pretrained(our_model(config, parameters), folder, "float32", quantize=kind, group_size=32, max_shard_gb=5e-5)
    loader = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model, info = loader.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="sdpa"
    )
    assert {key: len(value) for key, value in info.items()} == dict.fromkeys(info, 0)
    tokens = random_tokens(config, batch=2, length=30) % 90
    expected = our_model(config, dequantized_parameters(folder, parameters, kind)).logits(tokens)
    np.testing.assert_allclose(torch_logits(model, tokens), expected, atol=1e-4, rtol=0)
    original = our_model(config, parameters).logits(tokens)
    assert np.abs(expected - original).max() > 1e-3


@pytest.mark.oracles
@KINDS
def test_a_quantized_folder_has_what_vllms_loader_expects(kind, tmp_path):
    """Separate tensors for each expert, in the shapes of vLLM's packed linear layers. Its loader permutes the rows of
    query and key weights only under the name `weight`, so attention is not quantized. Sources:
    vllm/model_executor/models/llama4.py and layers/quantization/compressed_tensors."""
    save_pretrained(our_model(CONFIG, PARAMETERS), tmp_path / "out", quantize=kind, group_size=32)
    tensors, bits = tensors_of(tmp_path / "out"), BITS[kind]
    D, F = CONFIG.hidden_size, CONFIG.intermediate_size
    experts = "model.layers.1.feed_forward.experts"
    for expert in range(CONFIG.num_local_experts):
        for part, (out, inputs) in {"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)}.items():
            name = f"{experts}.{expert}.{part}.weight"
            assert tensors[f"{name}_packed"].shape == (out, inputs * bits // 32)
            assert tensors[f"{name}_packed"].dtype == np.int32
            assert tensors[f"{name}_scale"].shape == (out, inputs // 32)
            assert tensors[f"{name}_scale"].dtype == "bfloat16"
            assert tensors[f"{name}_shape"].tolist() == [out, inputs]
    whole = {name for name in tensors if not name.endswith(("_packed", "_scale", "_shape"))}
    assert not [name for name in whole if ".feed_forward." in name and "router" not in name]
    assert all(any(part in name for part in (*IGNORED, "norm", "embed_tokens")) for name in whole)
    given = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert given["quant_method"] == "compressed-tensors" and given["format"] == "pack-quantized"
    weights = given["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["strategy"]) == (bits, 32, "group")
    assert given["config_groups"]["group_0"]["targets"] == ["Linear"]  # the key for experts
    assert given["config_groups"]["group_0"]["input_activations"] is None


def test_a_checkpoint_a_folder_and_a_model_give_the_same_integers(tmp_path):
    model = our_model(CONFIG, PARAMETERS)
    save_pretrained(model, tmp_path / "plain", "float32")
    save_pretrained(model, tmp_path / "of_model", quantize="int4", group_size=32)
    export(tmp_path / "plain", tmp_path / "of_folder", quantize="int4", group_size=32)
    first, second = tensors_of(tmp_path / "of_model"), tensors_of(tmp_path / "of_folder")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name].view(np.uint8), second[name].view(np.uint8)) for name in first)


def test_integer_folders_cannot_be_loaded(tmp_path):
    """int8 and int4 are for export only."""
    save_pretrained(our_model(CONFIG, PARAMETERS), tmp_path / "out", quantize="int8", group_size=32)
    with pytest.raises(InputError, match="quantization_config"):
        load_pretrained(tmp_path / "out")
