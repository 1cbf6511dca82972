"""Low-rank adapters of the image encoder, of its adapter and of the projector."""

import functools

import jax
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.adapters import Adapters
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from maverick_jax.parameters import VISION_ROLES
from maverick_jax.sharding import make_mesh, single_device_mesh
from tests.helpers import tiny
from tests.maverick_jax.model.test_tiles import CONFIG, batch
from train.config_files import read_config
from train.state import init_state
from train.step import train_step
from train.trainable.config import TrainableConfig
from train.trainable.lora import LoraConfig

LORA = LoraConfig(rank=2, alpha=4.0, targets=VISION_ROLES)
OPTIMIZER = tiny.OPTIMIZER.build(tiny.STEPS, CONFIG, TrainableConfig(lora=LORA).selection())


def test_targets_are_the_matrices_of_products():
    found = {p.name for p in LORA.adapted(CONFIG)}
    layers = {f"vision/layers/{name}" for name in ("q", "k", "v", "o", "fc1", "fc2")}
    assert found == layers | {"vision/adapter_in", "vision/adapter_out", "vision/projector"}
    assert {p.name for p in LoraConfig(targets=("projector", "q_proj")).adapted(CONFIG)} == {
        "vision/projector",
        *(f"periods/layer_{i}/attention/q" for i in range(2)),
    }


@functools.cache
def trained(mesh) -> tuple[dict, dict, list[float]]:
    """Arrays before and after three steps, and their losses."""
    arrays = lambda state: {name: np.array(x) for name, x in names.flatten(state).items()}
    with jax.set_mesh(mesh):
        settings = {"config": CONFIG, "rules": tiny.RULES, "optimizer": OPTIMIZER, "objective": tiny.PRETRAIN}
        state = jax.jit(functools.partial(init_state, **settings, heads=LORA.adapters(CONFIG)))(0)
        step = jax.jit(functools.partial(train_step, references={}, objective=tiny.PRETRAIN, optimizer=OPTIMIZER))
        before, losses = arrays(state), []
        for _ in range(3):
            state, metrics = step(state, tiny.placed(batch()))
            losses.append(float(metrics["loss"]))
        return before, arrays(state), losses


@pytest.mark.slow
def test_only_the_factors_are_trained():
    before, after, losses = trained(single_device_mesh())
    changed = {name for name in before if name.startswith(("model/", "heads/")) and (before[name] != after[name]).any()}
    factors = {name for name in before if name.startswith("heads/")}
    assert changed == factors and len(factors) == 2 * len(LORA.adapted(CONFIG))
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_factors_are_the_same_on_a_mesh():
    _, here, losses = trained(single_device_mesh())
    _, there, expected = trained(make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name in (name for name in here if name.startswith("heads/")):
        np.testing.assert_allclose(here[name], there[name], atol=2e-4, err_msg=name)


def test_merged_adapters_give_the_same_hidden_states():
    _, after, _ = trained(single_device_mesh())
    with jax.set_mesh(single_device_mesh()):
        settings = {"config": CONFIG, "rules": tiny.RULES, "optimizer": OPTIMIZER, "objective": tiny.PRETRAIN}
        like = jax.jit(functools.partial(init_state, **settings, heads=LORA.adapters(CONFIG)))(0)
        state = names.unflatten(like, {name: jax.numpy.asarray(x) for name, x in after.items()})
        rows = {name: x[0] for name, x in tiny.placed(batch()).items()}
        hidden = jax.jit(lambda model: model.hidden(Inputs.of(rows))[0])
        beside = hidden(OPTIMIZER.selection.with_adapters(state.model, state.heads))
        factors = {name.removeprefix("heads/lora/"): x for name, x in after.items() if name.startswith("heads/lora/")}
        merging = Adapters(LORA.scale, {name: (x.shape, "float32") for name, x in factors.items()})
        own = names.flatten(state.model)
        parts = {name: jax.numpy.asarray(x) for name, x in factors.items()}
        merged = {
            name: merging.merge(name, jax.device_put(np.asarray(x), x.sharding), parts) for name, x in own.items()
        }
        whole = hidden(names.unflatten(state.model, merged))
        base = hidden(state.model)
    assert not parts and np.abs(np.asarray(base) - np.asarray(whole)).max() > 1e-3
    np.testing.assert_allclose(np.asarray(beside), np.asarray(whole), atol=2e-5)


def test_dropout_is_refused():
    words = ["model=tiny_vision", "trainable.lora={targets: [vision], dropout: 0.1}"]
    with pytest.raises(InputError, match=r"lora.dropout: adapters of vision are added to the weights"):
        read_config("pretrain_tiny", words)
