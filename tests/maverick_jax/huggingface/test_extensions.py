"""What a model has beyond Llama 4, in exports: left out, refused, dropped, or kept in a sidecar that we read back."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.huggingface import extensions
from maverick_jax.initialization.from_model import initial_weights
from maverick_jax.initialization.layer_map import Start
from maverick_jax.model_source import open_source
from maverick_jax.pretrained import (
    abstract_model,
    export,
    import_checkpoint,
    load_layers,
    load_pretrained,
    save_pretrained,
)
from maverick_jax.sharding import single_device_mesh
from tests.helpers.folders import files_of, store_run
from tests.parity.oracle import our_model, random_parameters, random_tokens, shapes, variant

PLAIN = variant(num_hidden_layers=2, no_rope_layer_interval=2, num_local_experts=0)
KEYS = {
    "latent": {"token_id": 95, "passes": 2},
    "reasoning_heads": {"schema_heads": 2, "scratch_heads": 1, "schema_tokens": 16},
    "loops": {"periods": [0, 1], "times": 2},
}


def config_of(*keys: str) -> ModelConfig:
    given = PLAIN.model_dump(mode="json") | {key: KEYS[key] for key in keys}
    return ModelConfig.model_validate_json(json.dumps(given))


WHOLE = config_of(*KEYS)
PARAMETERS = random_parameters(shapes(WHOLE))
ADDED = [name for name in shapes(WHOLE) if name not in shapes(PLAIN)]


def model_of(config: ModelConfig, **values):
    return our_model(config, {name: values.get(name, PARAMETERS[name]) for name in shapes(config)})


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> pathlib.Path:
    """The folder of the model without all of them."""
    save_pretrained(model_of(PLAIN), folder := tmp_path_factory.mktemp("plain") / "model")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A folder with all of them in its sidecar, in float32."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_pretrained(model_of(WHOLE), folder, "float32", sidecar=True)
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


# ---- left out, refused, dropped --------------------------------------------------------------------------------------


def test_what_adds_nothing_is_left_out_and_the_plain_folder_computes_the_same_bits(plain, tmp_path):
    zero = {name: np.zeros_like(PARAMETERS[name]) for name in ADDED if name.startswith("latent/") or name[-2:] == "/o"}
    model = model_of(config_of("latent", "reasoning_heads"), **zero)
    save_pretrained(model, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(plain)
    save_pretrained(model, tmp_path / "exact", "float32")
    tokens = np.minimum(random_tokens(PLAIN, 2, 16), 94)
    marks = np.ones_like(tokens, np.uint8)
    found, expected = load_pretrained(tmp_path / "exact").logits(tokens), model.logits(tokens, marks=marks)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("latent", r"latent/\w+ is not zero: Llama 4 has no latent thoughts.* --sidecar .*--drop latents.*distill"),
        ("reasoning_heads", r"schema/o is not zero: Llama 4 has no reasoning heads.* --sidecar .*--drop reasoning"),
        ("loops", r"loops\.times is 2: Llama 4 runs each layer once.*--drop reasoning"),
    ],
)
def test_what_adds_something_is_refused(key, message, tmp_path):
    with pytest.raises(InputError, match=message):
        save_pretrained(model_of(config_of(key)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_it_is_dropped_on_request(plain, tmp_path, caplog):
    """Of a model in memory, and of a run, whose arrays are checked as they are read."""
    store_run(tmp_path / "run", WHOLE, PARAMETERS)
    export(tmp_path / "run", tmp_path / "of_run", drop_latents=True, drop_reasoning=True)
    assert files_of(tmp_path / "of_run") == files_of(plain)
    caplog.clear()
    save_pretrained(model_of(WHOLE), tmp_path / "out", drop_latents=True, drop_reasoning=True)
    assert files_of(tmp_path / "out") == files_of(plain)
    assert "latent/matrix is not zero: Llama 4 has no latent thoughts; the exported model is the same in" in caplog.text
    assert "loops.times is 2: Llama 4 runs each layer once; the exported model computes something else" in caplog.text
    with pytest.raises(InputError, match="schema/o is not zero"):
        save_pretrained(model_of(WHOLE), tmp_path / "half", drop_latents=True)


# ---- the sidecar -----------------------------------------------------------------------------------------------------


def test_beside_a_sidecar_lies_the_plain_folder(plain, tmp_path, caplog):
    save_pretrained(model_of(WHOLE), tmp_path / "out", sidecar=True)
    found = files_of(tmp_path / "out")
    files = {f"{extensions.FOLDER}/{name}" for name in (extensions.CONFIG, extensions.TENSORS)}
    assert found.keys() - files_of(plain).keys() == files
    assert {name: found[name] for name in files_of(plain)} == files_of(plain)
    assert "other programs read the plain model" in caplog.text


@pytest.mark.parametrize(
    "keys", [("latent",), ("reasoning_heads",), ("loops",), ("latent", "loops"), tuple(KEYS)], ids=str
)
def test_a_sidecar_is_read_back_as_the_model_that_was_exported(keys, tmp_path):
    config = config_of(*keys)
    save_pretrained(model_of(config), tmp_path / "out", "float32", sidecar=True)
    source = open_source(tmp_path / "out")
    assert {key: getattr(source.config, key) for key in KEYS} == {key: getattr(config, key) for key in KEYS}
    for name, x in names.flatten(load_pretrained(tmp_path / "out")).items():
        np.testing.assert_array_equal(np.asarray(x), PARAMETERS[name], err_msg=name)


def test_import_init_from_and_export_of_a_folder_with_a_sidecar(whole, tmp_path):
    """A run that is imported, a model that begins from it, and further exports, in the same bits."""
    import_checkpoint(whole, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "again", "float32", sidecar=True)
    assert files_of(tmp_path / "again") == files_of(whole)
    with pytest.raises(InputError, match="latent/matrix is not zero"):
        export(whole, tmp_path / "refused")
    with jax.set_mesh(single_device_mesh()):
        found = initial_weights(abstract_model(WHOLE, single_device_mesh()), Start(str(whole)), 0)
    for name, x in names.flatten(found).items():
        np.testing.assert_array_equal(np.asarray(x), PARAMETERS[name], err_msg=name)


def test_an_engine_reads_a_sidecar(tmp_path):
    """Layer by layer, as `chat` and `serve` do; heads for thoughts, which engines refuse, are left out."""
    heads = {"reasoning_heads": KEYS["reasoning_heads"] | {"scratch_heads": 0}}
    config = ModelConfig.model_validate_json(json.dumps(PLAIN.model_dump(mode="json") | KEYS | heads))
    save_pretrained(model_of(config), tmp_path / "out", "float32", sidecar=True)
    found = names.flatten(load_layers(tmp_path / "out"))
    np.testing.assert_array_equal(np.asarray(found["rest/latent/matrix"]), PARAMETERS["latent/matrix"])
    q = PARAMETERS["periods/layer_0/reasoning/schema/q"]
    np.testing.assert_array_equal(np.asarray(found["layers/0/reasoning/schema/q"]), q[0])


def test_what_is_not_dropped_is_kept(tmp_path):
    store_run(tmp_path / "run", WHOLE, PARAMETERS)
    export(tmp_path / "run", tmp_path / "out", sidecar=True, drop_latents=True)
    config = open_source(tmp_path / "out").config
    assert config.latent is None and config.reasoning_heads == WHOLE.reasoning_heads and config.loops == WHOLE.loops


def test_a_sidecar_changes_the_fingerprint(whole, copy):
    other = model_of(WHOLE, **{"latent/matrix": PARAMETERS["latent/matrix"] + 1})
    shutil.rmtree(copy)
    save_pretrained(other, copy, "float32", sidecar=True)
    assert open_source(copy).fingerprint() != open_source(whole).fingerprint()


def test_a_plain_model_has_nothing_to_keep(tmp_path):
    with pytest.raises(InputError, match="--sidecar: the model has no latent thoughts, reasoning heads or loops"):
        save_pretrained(model_of(PLAIN), tmp_path / "out", sidecar=True)


# ---- hostile sidecars ------------------------------------------------------------------------------------------------


def change(folder: pathlib.Path, **changes) -> None:
    path = folder / extensions.FOLDER / extensions.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replaced_by_a_link(path: pathlib.Path) -> None:
    outside = path.parents[2] / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


DAMAGES = {
    "a version": (lambda f: change(f, version=2), "expected version 1 and model"),
    "a key": (lambda f: change(f, more=1), "expected version 1 and model"),
    "no mapping": (lambda f: change(f, model=[]), "expected version 1 and model"),
    "another key": (lambda f: change(f, model={"hidden_size": 64}), "model.hidden_size is not one of latent, loops"),
    "a wrong value": (lambda f: change(f, model=KEYS | {"loops": {"periods": [0, 9]}}), "model.*period"),
    "a wrong type": (lambda f: change(f, model={"latent": {"token_id": "9"}}), "model.latent.token_id"),
    "more heads": (
        lambda f: change(f, model=KEYS | {"reasoning_heads": {"schema_heads": 999_999, "scratch_heads": 1}}),
        "schema.q is F32 .*expected",
    ),
    "fewer keys": (lambda f: change(f, model={"latent": KEYS["latent"]}), "unexpected: .*reasoning"),
    "no tensors": (lambda f: (f / extensions.FOLDER / extensions.TENSORS).unlink(), "missing: .*latent.matrix"),
    "a cut": (lambda f: cut(f / extensions.FOLDER / extensions.TENSORS), "not a readable safetensors file"),
    "no config": (lambda f: (f / extensions.FOLDER / extensions.CONFIG).unlink(), "no such file"),
    "a link": (lambda f: replaced_by_a_link(f / extensions.FOLDER / extensions.TENSORS), "outside the folder"),
    "a linked config": (lambda f: replaced_by_a_link(f / extensions.FOLDER / extensions.CONFIG), "outside the folder"),
}


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", DAMAGES)
def test_a_malformed_sidecar_is_refused(name, copy):
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(InputError, match=message):
        load_pretrained(copy)


def test_a_sidecar_that_is_a_link_out_of_the_folder_is_refused(copy, tmp_path):
    shutil.move(copy / extensions.FOLDER, tmp_path / "outside")
    (copy / extensions.FOLDER).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="outside the folder"):
        open_source(copy)
