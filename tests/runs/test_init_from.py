"""Runs that start from the weights of another model: `model.init_from`."""

import jax
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.network import Balance
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import make_mesh
from tests.parity.oracle import MULTIMODAL, case
from train.config_files import read_config, resolved
from train.restore import StateParts, restore_or_start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "model"
    save_pretrained(case("maverick_with_images").ours, path, dtype="float32")
    return path


def config(folder, *overrides):
    return read_config("pretrain_tiny", [f"model={{init_from: {folder}}}", "data.sequence_length=16", *overrides])


def test_the_network_is_taken_from_the_folder(folder):
    network = config(folder, "model.compute_dtype=float32").model.network
    theirs = MULTIMODAL["maverick_with_images"]
    free = {"balance", "remat", "compute_dtype", "matmul_dtype"}
    free |= {"param_dtype", "router_dtype", "initializer_range"}
    assert network.model_dump(exclude=free) == theirs.model_dump(exclude=free)
    assert resolved(config(folder))["model"]["init_from"] == str(folder)


@pytest.mark.parametrize("sizes", [{"data": 1}, {"fsdp": 2, "expert": 2, "tensor": 2}])
def test_a_fresh_run_starts_from_those_weights(folder, tmp_path, sizes):
    run = config(folder, "model.balance.kind=loss_free_bias")
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    with jax.set_mesh(mesh):
        state = restore_or_start(StateParts.of(run, {}), CheckpointStore(tmp_path / "checkpoints"), mesh)
    assert int(state.step) == 0 and state.model.config.balance == Balance(kind="loss_free_bias")
    found, expected = names.flatten(state.model), case("maverick_with_images").parameters
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    bias = [name for name in found if name not in expected]
    assert bias and all(name.endswith("router_bias") and not np.any(found[name]) for name in bias)


def test_a_checkpoint_takes_precedence_over_init_from(folder, tmp_path):
    run = config(folder)
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])) as _:
        mesh = jax.sharding.get_mesh()
        store = CheckpointStore(tmp_path / "checkpoints")
        state = restore_or_start(StateParts.of(run, {}), store, mesh)
        moved = jax.tree.map(lambda x: x + 1 if x.ndim > 1 else x, state.model)
        arrays = names.flatten(state) | {f"model/{n}": x for n, x in names.flatten(moved).items()}
        store.save(3, arrays, {}, wait=True)
        again = restore_or_start(StateParts.of(run, {}), store, mesh)
    np.testing.assert_array_equal(again.model.head[...], state.model.head[...] + 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=64", r"model.hidden_size: 64 here, 32 in .*model"),
        ("model.vision=null", r"model.vision: None here"),
        ("model.init_from=/nowhere", r"model.init_from: /nowhere: no such folder"),
        ("model.init_form=x", r"model.init_form: .*did you mean model.init_from"),
    ],
)
def test_what_does_not_fit_is_refused(folder, override, message):
    with pytest.raises(InputError, match=message):
        config(folder, override)
