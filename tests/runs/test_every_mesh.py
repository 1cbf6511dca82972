"""A run on every mesh of eight devices with one to three axes gives the results of one device."""

import functools
import itertools

import jax
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.config import ModelConfig
from maverick_jax.sharding import MESH_AXES, single_device_mesh
from tests.helpers import tiny

LENGTH, CHUNK = 64, 4
DEEP = {"num_hidden_layers": 16, "no_rope_layer_interval": 2, "num_key_value_heads": 8, "attention_chunk_size": CHUNK}
"""Eight periods of two layers, and eight heads of keys: whatever is split can be split in eight."""
KINDS = {"maverick": {"interleave_moe_layer_step": 2}, "scout": {"interleave_moe_layer_step": 1, "use_qk_norm": True}}
MESHES = [
    dict(zip(axes, sizes, strict=True))
    for number in (1, 2, 3)
    for axes in itertools.combinations(MESH_AXES, number)
    for sizes in itertools.product((2, 4, 8), repeat=number)
    if np.prod(sizes) == 8
]


def config_of(kind: str) -> ModelConfig:
    return tiny.model_config(**DEEP, **KINDS[kind])


def run(config: ModelConfig) -> tuple[list[float], dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """Losses of ten steps on packed rows; Adam's moments after the first, multiples of the gradient and of its square;
    shapes of the parameters."""
    init, step = tiny.jitted(config)
    state, losses, moments = init(0), [], {}
    for i in range(tiny.STEPS):
        state, metrics = step(state, tiny.placed(tiny.batch(config, i, length=LENGTH, cell=CHUNK)))
        losses.append(float(metrics["loss"]))
        if i == 0:
            moments = {name: np.asarray(x, np.float64) for name, x in names.flatten(state.opt_state).items()}
    return losses, moments, {name: x.shape for name, x in names.flatten(state.model).items()}


@functools.cache
def reference(kind: str):
    with jax.set_mesh(single_device_mesh()):
        return run(config_of(kind))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_device(kind, sizes, mesh_of):
    losses, moments, shapes = reference(kind)
    with mesh_of(**sizes):
        got_losses, got, got_shapes = run(config_of(kind))
    np.testing.assert_allclose(got_losses, losses, atol=1e-5, rtol=0)
    assert got_shapes == shapes
    for name, expected in moments.items():
        assert np.linalg.norm(got[name] - expected) <= 1e-4 * max(np.linalg.norm(expected), 1e-12), name
