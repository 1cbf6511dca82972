"""Hugging Face folders, read and written: config.json, exchange with transformers, malformed folders."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.huggingface.config import read_config, write_config
from maverick_jax.huggingface.vision_config import write_vision_config
from maverick_jax.network import VisionConfig
from maverick_jax.pretrained import export, import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.sharding import make_mesh
from tests.parity.oracle import MODELS, NO_TOKEN_IDS, SCOUT, case, config_json, random_tokens


def function_of(config: ModelConfig) -> dict:
    """The settings that determine what the network computes, with its layers instead of the rules that define them."""
    left_out = {"interleave_moe_layer_step", "no_rope_layer_interval"}
    left_out |= {"balance", "param_dtype", "compute_dtype", "matmul_dtype", "router_dtype", "remat"}
    if all(spec.moe for spec in config.layers):
        left_out.add("intermediate_size_mlp")
    return config.model_dump(exclude=left_out) | {"layers": [spec.model_dump() for spec in config.layers]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """An export of the small Maverick in float32. Tests that change it copy it first."""
    path = tmp_path_factory.mktemp("export") / "maverick"
    save_pretrained(case("maverick").ours, path, dtype="float32")
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_json(path: pathlib.Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


def store_tensors(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def problems(path) -> str:
    with pytest.raises(InputError) as error:
        load_pretrained(path)
    return str(error.value)


# ---- config.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_written_config_is_read_back(name):
    again = read_config(config_json(MODELS[name]), "config.json")
    assert function_of(again) == function_of(MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_our_config(name):
    from transformers import Llama4TextConfig

    settings = Llama4TextConfig(**config_json(MODELS[name])).to_dict()
    assert read_config(settings, "theirs") == read_config(config_json(MODELS[name]), "ours")


@pytest.mark.parametrize("name", ["maverick_17b_128e", "scout_17b_16e"])
def test_shipped_models_equal_the_public_configs(name):
    """Every number, in each spelling of the released folders; absent keys have transformers' defaults."""
    scout = name.startswith("scout")
    text = {
        "num_local_experts": 16 if scout else 128,
        "interleave_moe_layer_step": 1 if scout else 2,
        "use_qk_norm": scout,
        "no_rope_layers": [],
        "rope_theta": 500000.0,
        "attn_temperature_tuning": 4,
        "floor_scale": 8192.0,
        "for_llm_compressor": False,
    }
    scaling = {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
    old = text | {"rope_scaling": scaling if scout else None, "model_type": "llama4_text"}
    new = text | {"rope_parameters": {"rope_theta": 500000.0} | (scaling if scout else {"rope_type": "default"})}
    del new["rope_theta"]
    expected = function_of(ModelConfig.from_name(name))
    assert function_of(read_config(old, "4.5x")) == expected
    images = write_vision_config(VisionConfig(), "bfloat16")
    both = read_config({"model_type": "llama4", "text_config": new} | images, "5.x")
    assert function_of(both) == expected | {"vision": VisionConfig().model_dump()}
    written = write_config(ModelConfig.from_name(name), "bfloat16", NO_TOKEN_IDS, 262144)
    assert written["attn_temperature_tuning"] is True and type(written["floor_scale"]) is int
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500000.0
    assert (written["rope_scaling"] is None) != scout
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}, "rope_scaling": None}, "yarn"),
        ({"rope_theta": 10000.0}, "disagrees"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"no_rope_layers": [1, 0, 1, 1, 0, 1, 1, 1]}, "no_rope_layers"),
        ({"no_rope_layers": [1, 1, 1, 0]}, "4 entries for 8 layers"),
        ({"layer_types": ["full_attention"] + ["chunked_attention"] * 7}, "layer_types"),
        ({"moe_layers": [0, 1, 5]}, "moe_layers"),
        ({"moe_layers": [1, 3, 5, 7, 9]}, "moe_layers"),
        ({"num_attention_heads": 5}, "multiple"),
        ({"vocab_size": "96"}, "vocab_size"),
        ({"floor_scale": 8.5}, "floor_scale"),
        ({"num_hidden_layers": None}, "num_hidden_layers: expected int, found None"),
        ({"use_qk_norm": 1}, "use_qk_norm: expected bool"),
        ({"moe_layers": 3}, "moe_layers: expected a list"),
        ({"moe_layers": ["a"]}, "moe_layers"),
        ({"no_rope_layer_interval": "4", "no_rope_layers": None}, "no_rope_layer_interval"),
    ],
)
def test_unsupported_configs_are_refused(changes, message):
    with pytest.raises(InputError) as error:
        read_config(config_json(MODELS["maverick"]) | changes, "some/config.json")
    assert str(error.value).startswith("some/config.json: ") and message in str(error.value)


def test_all_problems_of_a_config_are_reported_at_once():
    with pytest.raises(InputError, match=r"(?s)hidden_act.*attention_bias.*moe_layers"):
        read_config(
            config_json(MODELS["maverick"]) | {"hidden_act": "gelu", "attention_bias": True, "moe_layers": [0]}, "c"
        )


# ---- folders that transformers wrote -------------------------------------------------------------------------------


@pytest.mark.oracles
def test_import_of_a_folder_that_transformers_wrote(tmp_path):
    c = case("scout")
    c.torch.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    model = load_pretrained(tmp_path / "theirs")
    assert function_of(model.config) == function_of(SCOUT)
    tokens = random_tokens(c.config, batch=2, length=40)
    np.testing.assert_array_equal(model.logits(tokens), c.ours.logits(tokens))


@pytest.mark.oracles
def test_import_of_a_multimodal_folder_that_transformers_wrote(tmp_path):
    c = case("scout_with_images")
    c.torch.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    model = load_pretrained(tmp_path / "theirs")
    assert model.config.vision == c.config.vision
    for name, leaf in names.flatten(model).items():
        np.testing.assert_array_equal(leaf, c.parameters[name], err_msg=name)


def test_loading_places_parameters_on_the_mesh(folder):
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}, jax.devices())
    model = load_pretrained(folder, mesh, dtype="bfloat16")
    assert model.config.param_dtype == model.config.compute_dtype == "bfloat16"
    for name, leaf in names.flatten(model).items():
        assert leaf.sharding.mesh == mesh and str(leaf.dtype) == "bfloat16", name
        expected = case("maverick").parameters[name].astype(leaf.dtype)
        np.testing.assert_array_equal(np.asarray(leaf), expected, err_msg=name)
    experts = model.periods.layer_1.moe.experts_in[...]
    assert experts.addressable_shards[0].data.size * 8 == experts.size


# ---- malformed folders ---------------------------------------------------------------------------------------------


def test_all_tensors_that_do_not_match_are_listed(copy):
    tensors = tensors_of(copy)
    del tensors["model.norm.weight"]
    tensors["model.layers.3.self_attn.q_prj.weight"] = tensors.pop("model.layers.3.self_attn.q_proj.weight")
    tensors["lm_head.weight"] = np.ascontiguousarray(tensors["lm_head.weight"].T)
    tensors["model.layers.0.input_layernorm.weight"] = np.ones(32, np.int64)
    store_tensors(copy, tensors)
    message = problems(copy)
    assert message.startswith(f"{copy}: ") and "5 problem(s)" in message
    for line in (
        "missing: model.norm.weight [32]",
        "missing: model.layers.3.self_attn.q_proj.weight",
        "unexpected: model.layers.3.self_attn.q_prj.weight [32, 32]; did you mean model.layers.3.self_attn.q_proj",
        "shape: lm_head.weight is [32, 96]; config.json implies [96, 32]",
        "type: model.layers.0.input_layernorm.weight is I64; expected one of F32, F16, BF16",
    ):
        assert line in message


def test_the_hugging_face_cache_layout_is_read(copy, tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    shutil.move(copy, snapshot)
    shutil.move(snapshot / "model.safetensors", blobs / "f00d")
    (snapshot / "model.safetensors").symlink_to(blobs / "f00d")
    np.testing.assert_array_equal(load_pretrained(snapshot).norm[...], case("maverick").parameters["norm"])


def test_a_tensor_must_be_stored_exactly_once(copy):
    tensors = tensors_of(copy)
    halves = {"a.safetensors": dict(list(tensors.items())[:30]), "b.safetensors": dict(list(tensors.items())[29:])}
    for name, part in halves.items():
        safetensors.numpy.save_file(part, copy / name)
    weight_map = {tensor: name for name, part in halves.items() for tensor in part}
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map | {"gone": "a.safetensors"}})
    )
    message = problems(copy)
    assert "is stored in a.safetensors but listed in 'b.safetensors'" in message
    assert "is stored in both a.safetensors and b.safetensors" in message
    assert "'gone' is not in a.safetensors" in message


def test_paths_without_a_model_are_errors(tmp_path, folder):
    assert "no such folder" in problems(tmp_path / "absent")
    assert "not a model; expected a run directory" in problems(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"a PEFT adapter, not a model; `maverick import MODEL OUT --adapter {tmp_path}`" in problems(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert "no checkpoint" in problems(tmp_path)
    with pytest.raises(InputError, match="dtype: 'float16'"):
        load_pretrained(folder, dtype="float16")


# ---- our own checkpoints -------------------------------------------------------------------------------------------


def test_import_then_export_gives_the_same_tensors(folder, tmp_path):
    import_checkpoint(folder, tmp_path / "run")
    assert CheckpointStore(tmp_path / "run" / "checkpoints", read_only=True).verify(0) == []
    for source in ("run", "run/checkpoints/0"):
        export(tmp_path / source, tmp_path / "out", dtype="float32")
        again, tensors = tensors_of(tmp_path / "out"), tensors_of(folder)
        assert again.keys() == tensors.keys()
        assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
        shutil.rmtree(tmp_path / "out")


def test_model_is_read_from_a_training_checkpoint(tmp_path):
    """Only the model's arrays, in the requested dtype, of the newest or the given step."""
    c = case("three_layers")
    arrays = {f"model/{name}": array for name, array in names.flatten(c.ours).items()}
    store = CheckpointStore(tmp_path / "checkpoints")
    meta = {"model": c.config.model_dump(mode="json"), "data": "fingerprint"}
    store.save(1, arrays, meta, wait=True)
    newer = {name: array * 2 for name, array in arrays.items()} | {"optimizer/count": jax.numpy.ones(())}
    store.save(2, newer, meta, wait=True)
    newest, first = load_pretrained(tmp_path), load_pretrained(tmp_path / "checkpoints" / "1", dtype="bfloat16")
    np.testing.assert_array_equal(newest.head[...], 2 * c.parameters["head"])
    np.testing.assert_array_equal(first.head[...], c.parameters["head"].astype(first.head.dtype))
    assert first.config.compute_dtype == "bfloat16"
