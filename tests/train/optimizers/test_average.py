"""The exponential average of what is trained: its values, what it costs, and how a run keeps and exports it."""

import jax
import numpy as np
import pytest
from flax import nnx

from launch import cli
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.averages import averages_of
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from tests.helpers.small_run import checksums, store
from train.optimizers import AdamW, Muon
from train.optimizers.average import AverageConfig
from train.trainable.config import TrainableConfig

CONFIG = tiny.model_config(num_hidden_layers=2)
DECAY = 0.4
SPLIT = {"fsdp": 2, "expert": 2, "tensor": 2}


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.array(x) for name, x in names.flatten(tree).items()}


def averages(state) -> dict[str, np.ndarray]:
    """By the name of what is averaged."""
    found = arrays(state)
    return {name: found[average] for name, average in averages_of(found).items()}


SPLIT_MUON = pytest.param(Muon, SPLIT, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "sizes"), [(AdamW, {"data": 1}), SPLIT_MUON], ids=["AdamW", "Muon, split"])
def test_the_average_follows_the_parameters(kind, sizes, mesh_of):
    with mesh_of(**sizes):
        init, step = tiny.jitted(CONFIG, kind(learning_rate=1e-2, average=AverageConfig(decay=DECAY)))
        state = init(0)
        expected = {"model/" + name: x.astype(np.float64) for name, x in arrays(state.model).items()}
        for n in range(1, 5):
            state, _ = step(state, tiny.placed(tiny.batch(CONFIG, n)))
            kept = min(DECAY, (1 + n) / (10 + n))
            now = arrays(state.model)
            expected = {name: kept * x + (1 - kept) * now[name.removeprefix("model/")] for name, x in expected.items()}
    found = averages(state)
    assert found.keys() == expected.keys()
    assert all(x.dtype == np.float32 for x in found.values())
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
    moved = "model/" + next(iter(now))
    assert np.abs(found[moved] - now[moved.removeprefix("model/")]).max() > 1e-6


def test_training_does_not_depend_on_the_average(mesh_of):
    """But for rounding: XLA fuses the last sum of an update with what else reads it."""
    after = []
    with mesh_of(data=1):
        for average in (None, AverageConfig()):
            init, step = tiny.jitted(CONFIG, AdamW(average=average))
            state = init(0)
            for n in range(2):
                state, _ = step(state, tiny.placed(tiny.batch(CONFIG, n)))
            after.append(arrays(state.model))
    for name, x in after[0].items():
        np.testing.assert_allclose(after[1][name], x, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_refused_update_moves_no_average(mesh_of):
    with mesh_of(data=1):
        init, step = tiny.jitted(CONFIG, AdamW(average=AverageConfig()))
        state = init(0)
        before = averages(state)
        batch = tiny.batch(CONFIG)
        batch["loss_weights"] = np.full_like(batch["loss_weights"], np.nan)
        state, metrics = step(state, tiny.placed(batch))
    assert metrics["skipped"] == 1
    assert all(before[name].tobytes() == x.tobytes() for name, x in averages(state).items())


def test_an_average_counts_as_four_bytes(mesh_of):
    plain, averaged = AdamW(mu_dtype="bfloat16"), AdamW(mu_dtype="bfloat16", average=AverageConfig())
    assert (plain.state_bytes(None), averaged.state_bytes(None)) == (6, 10)
    with mesh_of(data=1):
        state = jax.eval_shape(tiny.jitted(CONFIG, averaged)[0], 0)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert held == 10 * CONFIG.num_parameters()


def test_averages_of_single_experts_are_refused():
    selection = TrainableConfig(experts={"1": (0,)}).selection()
    with pytest.raises(InputError, match=r"optimizer\.average: averages whole arrays; expected null, or no trainable"):
        AdamW(average=AverageConfig()).build(10, CONFIG, selection)


@pytest.fixture(scope="module")
def run(runs, tmp_path_factory):
    """A run of four updates with averages, interrupted after two, and the same run whole. Do not change them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
        folder = tmp_path_factory.mktemp("averaged")
        words = [
            runs.config,
            "optimizer.average={decay: 0.5}",
            "optimizer.accumulation_steps=1",
            "run.eval_every=100",
            "checkpoint.every=2",
        ]
        for name, steps in (("whole", 4), ("cut", 2), ("cut", 4)):
            assert cli.main(["train", *words, f"run.dir={folder / name}", f"run.steps={steps}"]) == 0
    return folder


@pytest.mark.slow
def test_a_resumed_run_has_the_same_averages_to_the_bit(run):
    assert checksums(run / "cut", 4) == checksums(run / "whole", 4)
    assert averages_of(checksums(run / "whole", 4))


@pytest.mark.slow
def test_averages_are_exported_on_request(run, tmp_path):
    assert cli.main(["export", str(run / "whole"), str(tmp_path / "now"), "--dtype", "float32"]) == 0
    assert cli.main(["export", str(run / "whole"), str(tmp_path / "mean"), "--dtype", "float32", "--average"]) == 0
    assert cli.main(["import", str(run / "whole"), str(tmp_path / "run"), "--average"]) == 0
    stored = store(run / "whole").readers("", 4)
    read = lambda name: stored[name](tuple(slice(0, n) for n in stored[name].shape), np.dtype(np.float32))
    mean, now, again = (arrays(load_pretrained(tmp_path / name)) for name in ("mean", "now", "run"))
    of_model = averages_of(stored)
    assert {"model/" + name for name in mean} == of_model.keys()
    for name, x in mean.items():
        np.testing.assert_array_equal(x, read(of_model["model/" + name]), err_msg=name)
        np.testing.assert_array_equal(again[name], x, err_msg=name)
    assert any((mean[name] != now[name]).any() for name in mean)


def test_a_checkpoint_without_averages_exports_none(tmp_path, capsys):
    with jax.set_mesh(single_device_mesh()):
        model = jax.jit(lambda: Maverick(CONFIG, tiny.RULES, rngs=nnx.Rngs(0)))()
    save_pretrained(model, tmp_path / "folder")
    import_checkpoint(tmp_path / "folder", tmp_path / "run")
    for name, said in (("folder", "a Hugging Face folder has no averages"), ("run", "with optimizer.average")):
        assert cli.main(["export", str(tmp_path / name), str(tmp_path / "out"), "--average"]) == 78
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
