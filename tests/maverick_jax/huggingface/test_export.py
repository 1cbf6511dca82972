"""Exported Hugging Face folders: other programs load them, round trips give the same bytes, and files are verified."""

import errno
import json
import logging
import os
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.huggingface.safetensors_writer import ExportFailed
from maverick_jax.pretrained import export, load_pretrained, save_pretrained
from maverick_jax.text import load_tokenizer
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.helpers.folders import files_of, mesh_of_8, read_json, store_run, tensors_of
from tests.parity.oracle import (
    MULTIMODAL,
    case,
    exported,
    our_model,
    random_parameters,
    random_tokens,
    shapes,
    torch_logits,
    variant,
)

SMALL_FILES = 2e-5
"""max_shard_gb for shards of 20 kB, so that a small model has several."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """The small Maverick with images as a run directory. Tests that change it copy it first."""
    c = case("maverick_with_images")
    return store_run(tmp_path_factory.mktemp("run") / "run", c.config, c.parameters)


@pytest.fixture
def copy(run, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(run, tmp_path / "copy"))


# ---- other programs load our exports -------------------------------------------------------------------------------


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["maverick", "scout", "dense", "six_layers_top_2", "unchunked", *MULTIMODAL])
def test_export_loads_in_transformers(name, tmp_path, caplog, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    c = case(name)
    save_pretrained(c.ours, tmp_path / "out", dtype="float32", max_shard_gb=SMALL_FILES)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    loader = AutoModelForImageTextToText if c.config.vision else AutoModelForCausalLM
    model, info = loader.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32, attn_implementation="sdpa"
    )
    assert {key: len(value) for key, value in info.items()} == dict.fromkeys(info, 0)
    warnings = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    if name.startswith("scout"):  # the public Scout gives this warning too
        warnings = {text for text in warnings if "high_freq_factor=1.0 and low_freq_factor=1.0" not in text}
    assert warnings == set()
    assert type(model).__name__ == ("Llama4ForConditionalGeneration" if c.config.vision else "Llama4ForCausalLM")
    tokens, pixels = random_tokens(c.config, batch=2, length=40), None
    if vision := c.config.vision:
        tokens %= 90
        tokens[1, 5 : 5 + 2 * vision.tokens_per_tile] = vision.image_token_index
        shape = (2, vision.num_channels, vision.image_size, vision.image_size)
        pixels = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    ours = c.ours.logits(tokens, pixel_values=pixels)
    np.testing.assert_allclose(torch_logits(model, tokens, pixels), ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["maverick", "scout", "dense", "maverick_with_images"])
def test_a_folder_has_what_vllms_loader_expects(name, tmp_path):
    """Names, shapes and keys that vLLM's Llama 4 loader reads; vLLM is not run. Sources: vllm/model_executor/models/
    llama4.py and mllama4.py."""
    config = case(name).config.model_copy(update={"vocab_size": 288})
    save_pretrained(our_model(config, random_parameters(shapes(config))), tmp_path / "out", tokenizer=ByteTokenizer())
    tensors, given = tensors_of(tmp_path / "out"), read_json(tmp_path / "out" / "config.json")
    E, D, F = config.num_local_experts, config.hidden_size, config.intermediate_size
    prefix, text = ("language_model.", given["text_config"]) if config.vision else ("", given)
    # It reads which layers have rotary embedding or experts from these two keys only.
    assert text["no_rope_layers"] == [int(layer.rope) for layer in config.layers]
    step = text["interleave_moe_layer_step"]
    for i, layer in enumerate(config.layers):
        assert layer.moe == (step > 0 and (i + 1) % step == 0)
        feed_forward = f"{prefix}model.layers.{i}.feed_forward"
        if layer.moe:  # fused: [expert, in, out], gate before up, and no `.weight`
            assert tensors[f"{feed_forward}.experts.gate_up_proj"].shape == (E, D, 2 * F)
            assert tensors[f"{feed_forward}.experts.down_proj"].shape == (E, F, D)
            assert tensors[f"{feed_forward}.router.weight"].shape == (E, D)
            assert tensors[f"{feed_forward}.shared_expert.down_proj.weight"].shape == (D, F)
        else:
            assert tensors[f"{feed_forward}.down_proj.weight"].shape == (D, config.intermediate_size_mlp)
        # Their rows are permuted on loading: they must be [out, in], adjacent pairs, and named `.weight`.
        assert tensors[f"{prefix}model.layers.{i}.self_attn.k_proj.weight"].shape[1] == D
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    new, old = text["rope_parameters"], text["rope_scaling"]
    assert new["rope_theta"] == text["rope_theta"] == 500000.0
    assert new["rope_type"] == ("llama3" if name == "scout" else "default")
    assert old is None if name != "scout" else {**old, "rope_theta": 500000.0} == new
    assert type(text["attn_temperature_tuning"]) is bool and type(text["floor_scale"]) is int
    assert text["num_local_experts"] == E and text["tie_word_embeddings"] is False
    assert text["dtype"] == text["torch_dtype"] == given["dtype"] == "bfloat16"
    generation = read_json(tmp_path / "out" / "generation_config.json")
    assert generation["attn_temperature_tuning"] is True  # it reads this key only here
    assert given["architectures"] == ["Llama4ForConditionalGeneration" if config.vision else "Llama4ForCausalLM"]
    if config.vision:
        assert given["model_type"] == "llama4" and given["vision_config"]["model_type"] == "llama4_vision_model"
        processor = read_json(tmp_path / "out" / "preprocessor_config.json")
        assert processor["size"] == {"height": 24, "width": 24} and processor["image_processor_type"]
        assert (tmp_path / "out" / "processor_config.json").is_file()
        assert tensors["multi_modal_projector.linear_1.weight"].shape == (D, config.vision.vision_output_dim)


def test_export_holds_the_tokenizer_and_its_ids(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    config, tokenizer = variant(vocab_size=271, num_hidden_layers=3), ByteTokenizer()
    save_pretrained(our_model(config, random_parameters(shapes(config))), tmp_path / "out", tokenizer=tokenizer)
    theirs, text = AutoTokenizer.from_pretrained(tmp_path / "out"), "To be → not\n"
    assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    for ids in (settings, theirs, json.loads((tmp_path / "out" / "config.json").read_text())):
        get = ids.get if isinstance(ids, dict) else lambda name, ids=ids: getattr(ids, name)
        assert [get(f"{name}_token_id") for name in ("bos", "eos", "pad")] == [256, 257, 258]
    assert load_tokenizer(tmp_path / "out").encode(text) == tokenizer.encode(text)


def test_shards_are_at_most_max_shard_gb(tmp_path):
    save_pretrained(case("maverick").ours, tmp_path / "out", max_shard_gb=2e-5)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    parameters = case("maverick").parameters
    assert index["metadata"]["total_parameters"] == sum(p.size for p in parameters.values())
    assert index["metadata"]["total_size"] == 2 * index["metadata"]["total_parameters"]
    for path in (tmp_path / "out").glob("*.safetensors"):
        tensors = safetensors.numpy.load_file(path)
        assert {index["weight_map"][name] for name in tensors} == {path.name}
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000


@pytest.mark.oracles
def test_bfloat16_export_rounds_to_nearest(tmp_path):
    import torch

    save_pretrained(case("maverick").ours, tmp_path / "out")
    exact = exported(case("maverick").parameters)
    for name, value in tensors_of(tmp_path / "out").items():
        nearest = torch.from_numpy(exact[name]).to(torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(value.astype(np.float32), nearest, err_msg=name)


def test_generation_configs_of_base_and_instruct_models(tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    config, tokenizer = variant(vocab_size=288, num_hidden_layers=3), ByteTokenizer()
    model, ends = our_model(config, random_parameters(shapes(config))), [257, 261, 262]
    assert [tokenizer.controls[t] for t in ("<|end_of_text|>", "<|eom|>", "<|eot|>")] == ends
    save_pretrained(model, tmp_path / "base", tokenizer=tokenizer)
    save_pretrained(model, tmp_path / "instruct", tokenizer=tokenizer, dialect="meta_json")
    base, instruct = (GenerationConfig.from_pretrained(tmp_path / name) for name in ("base", "instruct"))
    assert base.eos_token_id == 257 and not base.do_sample
    assert instruct.eos_token_id == ends and instruct.bos_token_id == 256
    assert (instruct.do_sample, instruct.temperature, instruct.top_p) == (True, 0.6, 0.9)
    assert read_json(tmp_path / "instruct" / "config.json")["eos_token_id"] == ends
    assert AutoTokenizer.from_pretrained(tmp_path / "instruct").chat_template
    assert not (tmp_path / "base" / "chat_template.jinja").exists()
    # An export of a folder keeps its settings, so an instruct model stays one.
    export(tmp_path / "instruct", tmp_path / "again")
    export(tmp_path / "base", tmp_path / "tuned", dialect="meta_json")
    expected = files_of(tmp_path / "instruct")
    del expected["tokenizer_config.json"]  # its list of tokens repeats tokenizer.json
    for name in ("again", "tuned"):
        assert expected.items() <= files_of(tmp_path / name).items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token_id": [3, "4"]}, "eos_token_id: expected an id below 96"),
        ({"bos_token_id": [1]}, "bos_token_id: expected an id"),
        ({"pad_token_id": 96}, "pad_token_id: expected an id below 96, found 96"),
        ({"temperature": True}, "temperature: expected float, found True"),
        ({"temperature": 10**400}, "temperature: expected float"),
        ({"top_k": float("1e300")}, "top_k: expected int"),
        ({"do_sample": 1}, "do_sample: expected bool, found 1"),
    ],
)
def test_a_malformed_generation_config_is_refused(change, message, tmp_path):
    save_pretrained(case("three_layers").ours, tmp_path / "in")
    (tmp_path / "in" / "generation_config.json").write_text(json.dumps(change))
    with pytest.raises(InputError, match=message):
        export(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "devices"), [("maverick", 1), ("scout_with_images", 8)])
def test_round_trips_give_the_same_bytes(name, devices, tmp_path):
    """In bfloat16: folder to model on a mesh to folder, and folder to checkpoint to folder."""
    first, mesh = tmp_path / "first", mesh_of_8() if devices == 8 else None
    save_pretrained(case(name).ours, first, max_shard_gb=SMALL_FILES)
    model = load_pretrained(first, mesh, dtype="bfloat16")
    save_pretrained(model, tmp_path / "of_model", max_shard_gb=SMALL_FILES)
    assert files_of(tmp_path / "of_model") == files_of(first)
    parameters = {name: np.asarray(array) for name, array in names.flatten(model).items()}
    store_run(tmp_path / "run", model.config, parameters, "bfloat16", mesh)
    export(tmp_path / "run", tmp_path / "of_run", max_shard_gb=SMALL_FILES)
    assert files_of(tmp_path / "of_run") == files_of(first)


def test_text_only_export_equals_the_text_model(run, tmp_path):
    text_config = case("maverick").config
    parameters = {k: v for k, v in case("maverick_with_images").parameters.items() if not k.startswith("vision/")}
    save_pretrained(our_model(text_config, parameters), tmp_path / "text")
    export(run, tmp_path / "of_run", text_only=True)
    save_pretrained(case("maverick_with_images").ours, tmp_path / "of_model", text_only=True)
    export(tmp_path / "of_model", tmp_path / "of_folder")
    for name in ("of_run", "of_model", "of_folder"):
        assert files_of(tmp_path / name) == files_of(tmp_path / "text")


# ---- errors --------------------------------------------------------------------------------------------------------


def damage(run: pathlib.Path, kind: str) -> None:
    files = [p for p in (run / "checkpoints" / "7" / "arrays").rglob("*") if p.is_file()]
    data = max(files, key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 4
    data.write_bytes({"a bit": raw, "cut off": raw[: len(raw) // 2], "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["a bit", "cut off", "empty"])
def test_a_damaged_checkpoint_is_refused(kind, copy, tmp_path):
    damage(copy, kind)
    with pytest.raises(InputError, match=r"checkpoints/7: .*(differs from what was saved|cannot be read)"):
        export(copy, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("where", ["header", "first tensor", "last tensor"])
def test_files_are_read_back_and_compared(where, tmp_path, monkeypatch):
    write, sizes = os.pwrite, []

    def damaged(handle, data, start):
        sizes.append(len(data))
        wanted = {"header": len(sizes) == 1, "first tensor": len(sizes) == 2, "last tensor": len(data) == 2 * 32 * 96}
        if wanted[where]:
            data = bytearray(data)
            data[-1] ^= 1
        return write(handle, data, start)

    monkeypatch.setattr(os, "pwrite", damaged)
    with pytest.raises(ExportFailed, match="differ from what was written"):
        save_pretrained(case("maverick").ours, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_export_overwrites_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        save_pretrained(case("maverick").ours, tmp_path / "taken")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        with pytest.raises(InputError, match=r"new: needs 0\.\d+ GB; its disk has 0\.001 GB free"):
            save_pretrained(case("maverick").ours, tmp_path / "new")

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(ExportFailed, match=r"model.safetensors could not be written: .*No space"):
        save_pretrained(case("maverick").ours, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "bfloat61"}, r"dtype: 'bfloat61'.*did you mean bfloat16"),
        ({"max_shard_gb": 0}, "max_shard_gb: 0; expected a positive number"),
        ({"quantize": "int5"}, r"quantize: 'int5'; expected int8 or int4; did you mean int"),
        ({"quantize": "int4", "group_size": 48}, "group_size: 48; expected one of 32, 64, 128"),
        ({"quantize": "int4"}, r"group_size: 128 does not divide the 40 inputs of .*down_proj"),
        ({"dialect": "meta_jsn"}, "dialect 'meta_jsn'.*did you mean meta_json"),
        ({"dialect": "meta_json"}, "needs a tokenizer, but the model has none"),
    ],
)
def test_bad_arguments_are_errors_before_anything_is_written(arguments, message, run, tmp_path):
    with pytest.raises(InputError, match=message):
        export(run, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_text_only_of_a_text_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="text_only: the model has no image encoder"):
        save_pretrained(case("maverick").ours, tmp_path / "out", text_only=True)
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_llama_4_are_not_exported(tmp_path):
    sliding = variant(local_attention="sliding_window", num_hidden_layers=3)
    with pytest.raises(InputError, match="sliding_window"):
        save_pretrained(our_model(sliding, random_parameters(shapes(sliding))), tmp_path / "out")
    too_large = ByteTokenizer()
    with pytest.raises(InputError, match="has 271 ids; the model's vocab_size is 96"):
        save_pretrained(case("maverick").ours, tmp_path / "out", tokenizer=too_large)
    assert not list(tmp_path.iterdir())


def test_balance_bias_is_dropped_only_on_request(tmp_path, caplog):
    biased = variant(balance={"kind": "loss_free_bias"}, num_hidden_layers=3)
    parameters = random_parameters(shapes(biased))
    path = next(name for name in parameters if name.endswith("router_bias"))
    with pytest.raises(InputError, match="drop_router_bias"):
        save_pretrained(our_model(biased, parameters), tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        save_pretrained(our_model(biased, parameters), tmp_path / "dropped", drop_router_bias=True)
    assert "dropped the balance bias" in caplog.text
    parameters[path] *= 0
    save_pretrained(our_model(biased, parameters), tmp_path / "zero")
    assert tensors_of(tmp_path / "zero").keys() == tensors_of(tmp_path / "dropped").keys()
