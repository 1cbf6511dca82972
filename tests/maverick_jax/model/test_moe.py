"""A layer of experts of limited capacity: what it drops, and what it leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.model.moe import Moe
from maverick_jax.ops.stream import stream_spec
from maverick_jax.sharding import ShardingRules
from tests.helpers import tiny

RULES = ShardingRules()
B, T, FAVORITE = 8, 24, 5


def layer(config, x, real):
    """Of the layer whose router prefers one expert: its results, its statistics, and gradients of its input and
    arrays."""
    moe = Moe(config, RULES, rngs=nnx.Rngs(0))
    graph, state = nnx.split(moe)
    state["router"] = jax.tree.map(lambda w: w.at[:, FAVORITE].add(0.1), state["router"])

    def loss(state, x):
        y, routed = nnx.merge(graph, state)(x, real)
        return jnp.sum(jnp.sin(y)), (y, routed.stats)

    gradients, (y, stats) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(state, x)
    return np.asarray(y), stats, [np.asarray(x) for x in jax.tree.leaves(gradients)]


def inputs():
    """[B, T, D] of which most choose the favorite, and which are no padding."""
    x = np.random.default_rng(0).normal(0.5, 1, (B, T, 32)).astype(np.float32)
    return x, np.arange(T)[None, :] < np.linspace(3, T, B).astype(int)[:, None]


def run(mesh_of, sizes, **changes):
    x, real = inputs()
    with mesh_of(**sizes):
        placed = jax.device_put(x, stream_spec(RULES, T, "residual")), jax.device_put(real, stream_spec(RULES, T))
        return layer(tiny.model_config(**changes), *placed)


def test_drops_are_counted_and_are_the_same_on_any_mesh(mesh_of):
    """In an update of skewed routing, of rows with padding; on devices that share experts and positions."""
    changes = {"expert_capacity_factor": 1.5, "num_experts_per_tok": 2}
    limit = tiny.model_config(**changes).expert_limit(T)
    y, stats, gradients = run(mesh_of, {"data": 1}, **changes)
    at_least = np.maximum(inputs()[1].sum(1) - limit, 0).sum() / 2
    assert float(stats.load.sum()) == 2 * inputs()[1].sum(), "the load counts what was chosen"
    assert at_least < float(stats.dropped) < float(stats.load.sum()) and float(stats.dropped) % 1 == 0
    other, of_mesh, others = run(mesh_of, {"expert": 4, "tensor": 2}, **changes)
    assert float(of_mesh.dropped) == float(stats.dropped)
    for a, b in zip((other, *others), (y, *gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_a_large_factor_equals_no_limit(mesh_of):
    sizes = {"fsdp": 2, "expert": 4}
    y, stats, gradients = run(mesh_of, sizes)
    assert stats.dropped is None
    large, of_large, of_inputs = run(mesh_of, sizes, expert_capacity_factor=8.0)
    assert float(of_large.dropped) == 0
    for a, b in zip((large, *of_inputs), (y, *gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
