"""Dropout of low-rank adapters: in training only, drawn from the seed and the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.model.overlays import Dropout
from maverick_jax.sharding import make_mesh, single_device_mesh
from tests.helpers import tiny
from train.state import init_state
from train.step import train_step
from train.trainable.config import TrainableConfig
from train.trainable.lora import LoraConfig
from train.trainable.selection import ADAPTER_NOISE

CONFIG = tiny.model_config(no_rope_layer_interval=2)  # two periods of a dense layer and a mixture of experts


@functools.cache
def programs(dropout=0.5, seed=0, **changes):
    """(init, step, selection) of adapters with dropout."""
    lora = LoraConfig(rank=3, targets=("q_proj", "gate_proj", "down_proj"), dropout=dropout)
    config = CONFIG.model_copy(update=changes)
    optimizer = tiny.OPTIMIZER.build(tiny.STEPS, config, TrainableConfig(lora=lora).selection(seed))
    parts = {"config": config, "rules": tiny.RULES, "optimizer": optimizer, "objective": tiny.PRETRAIN}
    init = jax.jit(functools.partial(init_state, **parts, heads=lora.adapters(config)))
    step = functools.partial(train_step, references={}, objective=tiny.PRETRAIN, optimizer=optimizer)
    return init, jax.jit(step), optimizer.selection


def b_is_constant(state):
    draw = lambda name, x: jnp.full_like(x, 0.02) if name.endswith("/b") else x
    heads = names.unflatten(state.heads, {n: draw(n, x) for n, x in names.flatten(state.heads).items()})
    return dataclasses.replace(state, heads=heads)


def first_step(step: int = 0, **sizes):
    """Loss and gradient norm of the first step, and the factors after it; `step`: the number of steps before it."""
    count = int(np.prod(list(sizes.values()) or [1]))
    with jax.set_mesh(make_mesh(sizes, jax.devices()[:count])):
        init, program, _ = programs()
        state = dataclasses.replace(b_is_constant(init(0)), step=jnp.int32(step))
        after, metrics = program(state, tiny.placed(tiny.batch(CONFIG, microbatches=2)))
        heads = {name: np.array(x) for name, x in names.flatten(after.heads).items()}
        return (float(metrics["loss"]), float(metrics["grad_norm"])), heads


def test_the_share_is_dropped_and_the_rest_scaled_up():
    with jax.set_mesh(single_device_mesh()):
        x = jnp.ones((64, 64, 8))
        dropout = Dropout(jax.random.key_data(jax.random.key(3)), 0.25)
        found = np.array(jax.jit(lambda x: dropout(x))(x))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((found == 0).mean() - 0.25) < 0.01  # 4 standard deviations of 32,768 draws


def test_the_keys_depend_on_seed_step_and_microbatch():
    selection = lambda seed, rate=0.1: TrainableConfig(lora=LoraConfig(dropout=rate)).selection(seed)
    keys = [selection(seed).noise(jnp.int32(step), 2)[ADAPTER_NOISE] for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(row) for key in keys for row in np.array(key).tolist()}) == 8
    np.testing.assert_array_equal(keys[0], selection(0).noise(jnp.int32(0), 2)[ADAPTER_NOISE])
    assert selection(0, 0.0).noise(jnp.int32(0), 2) == {} == TrainableConfig().selection().noise(jnp.int32(0), 2)


@pytest.mark.slow
def test_a_step_is_repeated_to_the_bit_and_another_step_drops_other_inputs():
    """What is dropped is a function of seed and step, which a checkpoint has: so a resumed run repeats it."""
    (first, heads), (again, same), (later, _) = first_step(), first_step(), first_step(step=1)
    assert first == again and first[0] != later[0]
    for name, x in heads.items():
        np.testing.assert_array_equal(x, same[name], err_msg=name)


@pytest.mark.slow
def test_a_split_model_drops_the_same_inputs():
    whole, split = first_step(), first_step(fsdp=2, expert=2, tensor=2)
    np.testing.assert_allclose(whole[0][0], split[0][0], rtol=1e-5)  # another order of float32 sums
    np.testing.assert_allclose(whole[0][1], split[0][1], rtol=1e-3)  # the same, and equal B magnify it in gradients


def test_evaluation_and_samples_have_no_dropout():
    with jax.set_mesh(single_device_mesh()):
        tokens = jax.device_put(tiny.batch(CONFIG)["tokens"][0], tiny.RULES("batch", "length"))
        logits = jax.jit(lambda model: model.logits(tokens))
        found = []
        for rate in (0.0, 0.5):
            init, _, selection = programs(rate)
            state = b_is_constant(init(0))
            found.append(np.array(logits(selection.with_adapters(state.model, state.heads))))
    np.testing.assert_array_equal(*found)


def test_layers_and_matrices_drop_different_inputs():
    with jax.set_mesh(single_device_mesh()):
        init, _, selection = programs()
        state = init(0)
        noise = selection.noise(state.step, 1)[ADAPTER_NOISE][0]
        model = selection.with_adapters(state.model, state.heads, noise)
    keys = [np.array(x).reshape(-1, 2) for n, x in names.flatten(model).items() if n.endswith("dropout/key")]
    rows = [tuple(row) for key in keys for row in key.tolist()]
    assert len(set(rows)) == len(rows) == CONFIG.num_hidden_layers * 3


@pytest.mark.slow
def test_a_recomputed_layer_drops_the_same_inputs():
    losses = []
    for remat in ("none", "full"):
        with jax.set_mesh(single_device_mesh()):
            init, step, _ = programs(remat=remat)
            _, metrics = step(b_is_constant(init(0)), tiny.placed(tiny.batch(CONFIG)))
            losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    np.testing.assert_allclose(*losses, rtol=1e-5)  # another order of float32 sums
