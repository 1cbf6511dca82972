"""Averages of models on disk."""

import jax
import numpy as np
import pytest
from flax import nnx

from launch import cli
from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.merge import merge
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import open_source
from maverick_jax.pretrained import export, import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.sharding import ShardingRules, single_device_mesh
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.helpers import tiny


def folder_of(path, seed: int, dtype: str = "float32", **changes):
    """A Hugging Face folder of a small model with random parameters."""
    config = tiny.model_config(vocab_size=300, num_hidden_layers=2, **changes)
    with jax.set_mesh(single_device_mesh()):
        model = jax.jit(lambda: Maverick(config, ShardingRules(), rngs=nnx.Rngs(seed)))()
    save_pretrained(model, path, dtype=dtype, tokenizer=ByteTokenizer())
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder, a run directory and a folder, of one network. Do not change them."""
    root = tmp_path_factory.mktemp("models")
    first, second, third = (folder_of(root / str(seed), seed) for seed in range(3))
    import_checkpoint(second, root / "run")
    return first, root / "run", third


def arrays(path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in names.flatten(load_pretrained(path)).items()}


@pytest.mark.parametrize("times", [2, 3, 7])
def test_equal_models_average_to_themselves_to_the_bit(models, tmp_path, times):
    merge([models[1]] * times, tmp_path / "out")
    before, after = arrays(models[1]), arrays(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_equal_bfloat16_models_average_to_themselves_to_the_bit(tmp_path):
    import_checkpoint(folder_of(tmp_path / "model", 0, "bfloat16"), tmp_path / "run", "bfloat16")
    merge([tmp_path / "run"] * 3, tmp_path / "out", [0.2, 0.3, 0.5])
    assert open_source(tmp_path / "out").config.param_dtype == "bfloat16"
    before, after = arrays(tmp_path / "run"), arrays(tmp_path / "out")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_weights_are_divided_by_their_sum(models, tmp_path):
    merge(models, tmp_path / "out", [2, 1, 5])
    held, found = [arrays(model) for model in models], arrays(tmp_path / "out")
    for name, array in found.items():
        a, b, c = (values[name].astype(np.float64) for values in held)
        np.testing.assert_array_equal(array, (0.25 * a + 0.125 * b + 0.625 * c).astype(np.float32))


def test_a_merged_model_is_exported_with_its_tokenizer(models, tmp_path):
    assert cli.main(["merge", *map(str, models[:2]), str(tmp_path / "out"), "--weights", "3,1"]) == 0
    export(tmp_path / "out", tmp_path / "folder", "float32")
    merged, exported = arrays(tmp_path / "out"), arrays(tmp_path / "folder")
    assert all(merged[name].tobytes() == exported[name].tobytes() for name in merged)
    assert any((tmp_path / "folder").glob("*tokenizer*"))


def test_other_networks_are_refused(models, tmp_path):
    other = folder_of(tmp_path / "other", 0, num_local_experts=2)
    with pytest.raises(
        InputError, match=r"other: model\.num_local_experts is 2; .* has 8; expected models of one network"
    ):
        merge([models[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("count", "weights", "message"),
    [
        (1, None, "1 model"),
        (2, [1.0], "1 for 2 models"),
        (2, [1.0, -1.0], "sum above 0"),
        (2, [float("nan"), 1.0], "expected finite numbers"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(models, tmp_path, count, weights, message):
    with pytest.raises(InputError, match=message):
        merge(models[:count], tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_an_out_that_exists_is_left_alone(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        merge(models, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


def test_a_damaged_model_is_refused(models, tmp_path):
    import_checkpoint(models[0], tmp_path / "damaged")
    data = max((tmp_path / "damaged").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError):
        merge([models[0], tmp_path / "damaged"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
