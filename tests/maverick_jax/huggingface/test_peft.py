"""Low-rank adapters as PEFT adapter folders: written, read, merged, and loaded by PEFT itself where it is installed."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from maverick_jax.adapter_folder import export_adapter
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.huggingface.peft import PeftAdapter
from maverick_jax.pretrained import export, import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import load_tokenizer
from tests.helpers.folders import read_json
from tests.parity.oracle import MODELS, MULTIMODAL, our_model, random_parameters, random_tokens, shapes, torch_logits
from train.config_files import read_config
from train.restore import StateParts, restore_or_start
from train.trainable.lora import LoraConfig, targets_of

CONFIG = MODELS["three_layers"].model_copy(update={"num_hidden_layers": 9, "vocab_size": 288})  # two periods and a tail
MATRICES = ("q_proj", "o_proj", "gate_proj", "down_proj")


def store_adapters(directory, lora, config=CONFIG, **about):
    """A run directory of a random model with random adapters."""
    rng = np.random.default_rng(3)
    model = our_model(config, random_parameters(shapes(config)))
    arrays = {f"model/{name}": x for name, x in names.flatten(model).items()}
    for head in lora.adapters(config):
        arrays[f"heads/{head.name}"] = jnp.asarray(rng.normal(0, 0.3, head.shape), jnp.float32)
    meta = {"model": config.model_dump(mode="json"), "adapters": lora.record(), **about}
    CheckpointStore(directory / "checkpoints").save(1, arrays, meta, wait=True)
    load_tokenizer("bytes").save(directory)
    return directory


def exported(tmp_path, lora, config=CONFIG, **about):
    """An adapter folder, and the run that it is from."""
    run = store_adapters(tmp_path / "run", lora, config, **about)
    export_adapter(run, tmp_path / "adapter")
    return tmp_path / "adapter", run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The same model without adapters, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("plain") / "base"
    save_pretrained(our_model(CONFIG, random_parameters(shapes(CONFIG))), path, dtype="float32")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An adapter folder with the settings LORA, and the run that it is from. Tests must not change them."""
    return exported(tmp_path_factory.mktemp("made"), LORA)


@pytest.fixture
def folder(made, tmp_path):
    """A copy of that folder."""
    shutil.copytree(made[0], tmp_path / "adapter")
    return tmp_path / "adapter"


LORA = LoraConfig(rank=3, alpha=6.0, targets=MATRICES, dropout=0.1)


def test_the_folder_has_the_names_and_the_settings_of_peft(tmp_path):
    folder, _ = exported(tmp_path, LORA, init_from="llama4")
    found = read_json(folder / "adapter_config.json")
    assert (found["peft_type"], found["task_type"], found["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert (found["r"], found["lora_alpha"], found["lora_dropout"], found["use_rslora"]) == (3, 6.0, 0.1, False)
    assert found["base_model_name_or_path"] == "llama4" and found["target_modules"] == sorted(MATRICES)
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    theirs = "base_model.model.model.layers.8.self_attn.o_proj.lora_A.weight"
    assert tensors[theirs].shape == (3, CONFIG.num_attention_heads * CONFIG.head_dim)
    assert tensors[theirs.replace("lora_A", "lora_B")].shape == (CONFIG.hidden_size, 3)
    assert len(tensors) == 2 * (9 * 2 + 9 * 2)
    assert load_tokenizer(folder).vocab_size == 271


@pytest.mark.parametrize("rslora", [False, True])
def test_the_tensors_are_the_change_of_the_merged_export(base, tmp_path, rslora):
    """W + scale * (B A) of every adapted matrix, from the files alone."""
    folder, run = exported(tmp_path, LORA.model_copy(update={"rslora": rslora}))
    export(run, tmp_path / "merged", dtype="float32")
    plain = safetensors.numpy.load_file(base / "model.safetensors")
    merged = safetensors.numpy.load_file(tmp_path / "merged" / "model.safetensors")
    factors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    changed = {name for name in plain if np.any(plain[name] != merged[name])}
    assert changed == {n.split("model.", 2)[2].split(".lora_")[0] + ".weight" for n in factors}
    for name in changed:
        a, b = (factors[f"base_model.model.{name[:-7]}.lora_{side}.weight"] for side in "AB")
        scale = 6.0 / (math.sqrt(3) if rslora else 3)
        np.testing.assert_allclose(merged[name], plain[name] + scale * (b @ a), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.oracles
def test_peft_computes_what_the_merged_model_does(made, base):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    folder, run = made
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens = random_tokens(CONFIG, 2, 20)
    plain = torch_logits(model, tokens)
    found = torch_logits(peft.PeftModel.from_pretrained(model, folder).eval(), tokens)
    assert np.abs(found - plain).max() > 0.05
    np.testing.assert_allclose(load_pretrained(run).logits(tokens), found, rtol=1e-3, atol=1e-3)  # sums of float32


@pytest.mark.oracles
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_made_is_merged_as_peft_computes(base, tmp_path, rslora):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    words = {"target_modules": ["q_proj", "shared_expert.down_proj"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, use_rslora=rslora, **words)).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    import_checkpoint(base, tmp_path / "imported", adapter=tmp_path / "adapter")
    tokens = random_tokens(CONFIG, 2, 20)
    found = load_pretrained(tmp_path / "imported").logits(tokens)
    np.testing.assert_allclose(found, torch_logits(wrapped, tokens), rtol=1e-3, atol=1e-3)  # sums of float32


# ---- names of modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (("attention",), ["k_proj", "o_proj", "q_proj", "v_proj"]),
        (("shared",), ["shared_expert.down_proj", "shared_expert.gate_proj", "shared_expert.up_proj"]),
        (("mlp",), ["feed_forward.down_proj", "feed_forward.gate_proj", "feed_forward.up_proj"]),
        (("v_proj", "up_proj"), ["up_proj", "v_proj"]),
    ],
)
def test_target_modules_are_the_shortest_names_that_mean_the_same(tmp_path, targets, modules):
    folder, _ = exported(tmp_path, LoraConfig(rank=2, targets=targets))
    assert read_json(folder / "adapter_config.json")["target_modules"] == modules
    attention = ("k_proj", "o_proj", "q_proj", "v_proj")
    assert targets_of(PeftAdapter.at(folder).matrices) == (attention if targets == ("attention",) else targets)


def test_modules_of_the_image_encoder_are_not_meant(tmp_path):
    config = MULTIMODAL["maverick_with_images"]
    folder, _ = exported(tmp_path, LoraConfig(rank=2, targets=("q_proj",)), config)
    found = read_json(folder / "adapter_config.json")["target_modules"]
    layers = config.num_hidden_layers
    assert found == sorted(f"language_model.model.layers.{i}.self_attn.q_proj" for i in range(layers))
    assert set(PeftAdapter.at(folder).factors(config)) == {
        f"{name}/{side}" for name in names_of(config, "attention/q") for side in "ab"
    }


def test_adapters_of_the_image_encoder_are_written_and_read(tmp_path):
    config = MULTIMODAL["maverick_with_images"]
    folder, run = exported(tmp_path, LoraConfig(rank=2, targets=("vision", "adapter", "projector")), config)
    found, modules = PeftAdapter.at(folder), read_json(folder / "adapter_config.json")["target_modules"]
    assert {"vision_model.vision_adapter.mlp.fc1", "multi_modal_projector.linear_1"} <= {*modules}
    assert "vision_model.model.layers.1.mlp.fc2" in modules and len(modules) == 6 * 2 + 3
    assert targets_of(found.matrices) == ("vision", "adapter", "projector")
    stored = CheckpointStore(run / "checkpoints", read_only=True).readers("heads/lora/")
    factors = found.factors(config)
    assert factors.keys() == stored.keys() and factors["vision/layers/q/a"].shape == (2, 32, 2)
    for name, x in factors.items():
        whole = stored[name](tuple(slice(0, n) for n in stored[name].shape), np.dtype(np.float32))
        np.testing.assert_array_equal(x, whole, err_msg=name)


def names_of(config, end):
    return {name for name in shapes(config) if name.endswith(end) and not name.startswith("vision")}


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_reading_gives_the_factors_back_to_the_bit(made):
    folder, run = made
    found = PeftAdapter.at(folder)
    stored = CheckpointStore(run / "checkpoints", read_only=True).readers("heads/lora/")
    assert found.settings.rank == 3 and found.settings.alpha == 6.0 and found.dropout == 0.1
    factors = found.factors(CONFIG)
    assert factors.keys() == stored.keys()
    for name, reader in stored.items():
        whole = tuple(slice(0, n) for n in reader.shape)
        np.testing.assert_array_equal(factors[name], reader(whole, np.dtype(np.float32)), err_msg=name)


def test_an_import_with_an_adapter_is_the_merged_model(made, base, tmp_path):
    folder, run = made
    import_checkpoint(base, tmp_path / "imported", adapter=folder)
    expected, found = (names.flatten(load_pretrained(path)) for path in (run, tmp_path / "imported"))
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-6, atol=1e-6, err_msg=name)


def test_training_goes_on_from_an_adapter(made, base, tmp_path):
    folder, run = made
    words = [f"model={{init_from: {base}}}", f"trainable.lora={{init_from: {folder}}}"]
    config = read_config("pretrain_tiny", [*words, "data.tokenizer=bytes", "mesh.data=1"])
    assert config.trainable.lora.model_dump(exclude={"init_from", "targets"}) == LORA.model_dump(
        exclude={"init_from", "targets"}
    )
    assert set(config.trainable.lora.targets) == set(MATRICES)
    with jax.set_mesh(single_device_mesh()) as _:
        mesh = jax.sharding.get_mesh()
        state = restore_or_start(StateParts.of(config, {}), CheckpointStore(tmp_path / "new"), mesh)
    stored = CheckpointStore(run / "checkpoints", read_only=True).readers("heads/")
    heads = names.flatten(state.heads)
    assert heads.keys() == stored.keys()
    for name, reader in stored.items():
        whole = tuple(slice(0, n) for n in reader.shape)
        np.testing.assert_array_equal(heads[name], reader(whole, np.dtype(np.float32)), err_msg=name)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("rank: 8", r"trainable.lora.rank: 8 here, 3 in .*adapter"),
        ("alpha: 1.0", r"trainable.lora.alpha: 1.0 here, 6.0 in .*adapter"),
        ("rslora: true", r"trainable.lora.rslora: True here, False in .*adapter"),
    ],
)
def test_settings_that_differ_from_the_adapter_are_refused(folder, word, said):
    with pytest.raises(InputError, match=said):
        read_config("pretrain_tiny", [f"trainable.lora={{init_from: {folder}, {word}}}"])


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_adapters_of_a_model_with_latents_are_those_of_its_plain_matrices(made, tmp_path):
    config = ModelConfig.model_validate(CONFIG.model_dump() | {"latent": {"token_id": 95}, "reasoning_heads": {}})
    found, _ = exported(tmp_path, LORA, config)
    assert (found / "adapter_config.json").read_bytes() == (made[0] / "adapter_config.json").read_bytes()


def test_what_is_no_adapter_of_its_own_is_not_exported(base, tmp_path):
    run = store_adapters(tmp_path / "experts", LoraConfig(rank=2, targets=("attention", "experts")))
    with pytest.raises(InputError, match=r"experts_in: adapters of routed experts have no stable form in PEFT"):
        export_adapter(run, tmp_path / "folder")
    run = store_adapters(tmp_path / "more", LORA, trainable={"parameters": ["norms"]})
    with pytest.raises(InputError, match=r"trains norms besides its adapters; export the merged model"):
        export_adapter(run, tmp_path / "folder")
    with pytest.raises(InputError, match=r"has no low-rank adapters; expected a run with trainable.lora"):
        export_adapter(base, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, r"peft_type 'IA3'; expected 'LORA'"),
        ({"use_dora": True}, r"use_dora: True is not supported"),
        ({"bias": "all"}, r"bias: 'all' is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, r"rank_pattern: .* is not supported"),
        ({"target_parameters": ["experts.gate_up_proj"]}, r"target_parameters: .* is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: .* is not supported"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa' may have changed the base model"),
        ({"something_new": 1}, r"something_new: 1 is not supported"),
        ({"r": 0}, r"r: 0, lora_alpha: 6.0; expected"),
        ({"lora_alpha": None}, r"lora_alpha: None; expected"),
        ({"lora_dropout": 2}, r"lora_dropout: expected a number"),
        ({"r": 4}, r"q_proj.lora_A: is \[3, 32\]; expected \[4, 32\]"),
    ],
)
def test_settings_that_mean_something_else_are_refused(folder, changes, said):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | changes))
    with pytest.raises(InputError, match=said):
        PeftAdapter.at(folder).factors(CONFIG)


def test_tensors_that_do_not_fit_are_named(folder):
    path = folder / "adapter_model.safetensors"
    whole = safetensors.numpy.load_file(path)
    base = "base_model.model.model.layers."

    def refused(change, said):
        tensors = dict(whole)
        change(tensors)
        safetensors.numpy.save_file(tensors, path)
        with pytest.raises(InputError, match=said):
            PeftAdapter.at(folder).factors(CONFIG)

    half = f"{base}0.self_attn.q_proj.lora_B.weight"
    refused(lambda t: t.pop(half), r"model.layers.0.self_attn.q_proj: lora_B is missing")

    def without_layer(tensors):
        for side in "AB":
            del tensors[f"{base}3.self_attn.q_proj.lora_{side}.weight"]

    refused(without_layer, r"layers.3.self_attn.q_proj: has no adapter, but other layers' q have one")

    def deeper(tensors):
        for side in "AB":
            tensors[f"{base}99.self_attn.q_proj.lora_{side}.weight"] = whole[
                f"{base}0.self_attn.q_proj.lora_{side}.weight"
            ]

    refused(deeper, r"model.layers.99.self_attn.q_proj: the model has no such matrix")
    head = {"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}
    refused(lambda t: t.update(head), r"lm_head.weight: F32 \[2, 2\] is no factor")


def test_a_pickle_is_never_loaded(folder, tmp_path):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model.bin is a pickle, which is never loaded"):
        PeftAdapter.at(folder)
    with pytest.raises(InputError, match=r"no PEFT adapter; expected a folder with adapter_config.json"):
        PeftAdapter.at(tmp_path)
