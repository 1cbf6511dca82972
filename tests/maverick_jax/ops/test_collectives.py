"""Sums over devices: of sequences, and of gradients in stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.collectives import batch_sums, reduce_scatter
from maverick_jax.sharding import ShardingRules
from tests.helpers.collectives import collectives

RULES = ShardingRules()


def local(x, y):
    """Of whole sequences: what stands before counts."""
    return {"sums": jnp.sum(jnp.cumsum(x, axis=1) * y), "rows": jnp.zeros_like(x, shape=5).at[x[:, 0]].add(1)}


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 8}, {"data": 2, "expert": 2, "tensor": 2}])
def test_it_is_the_sum_of_the_whole_batch(sizes, mesh_of):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 5, (8, 6)).astype(np.int32) for _ in range(2))
    expected = local(jnp.asarray(x), jnp.asarray(y))
    with mesh_of(**sizes):
        placed = [jax.device_put(a, RULES("batch", "length")) for a in (x, y)]
        found = jax.jit(lambda *arrays: batch_sums(local, *arrays, rules=RULES))(*placed)
        assert all(a.sharding.is_fully_replicated for a in found.values())
    jax.tree.map(np.testing.assert_array_equal, found, expected)


SCATTERS = [({"fsdp": 8}, 8), ({"fsdp": 8}, 4), ({"fsdp": 8}, 2), ({"fsdp": 2, "expert": 4}, 2), ({"expert": 7}, 3)]


@pytest.mark.parametrize(("sizes", "stage"), SCATTERS)
@pytest.mark.parametrize("dimension", [0, 1])
def test_reduce_scatter_gives_each_device_its_block_of_the_sum(sizes, stage, dimension, mesh_of):
    axes, devices = tuple(sizes), int(np.prod([*sizes.values()]))
    parts = np.random.default_rng(0).standard_normal((devices, 3 * devices, 2 * devices)).astype(np.float32)
    out = PartitionSpec(*[None] * dimension, axes)
    local = lambda x: reduce_scatter(x[0], axes, dimension, stage=stage)
    with mesh_of(**sizes):
        placed = jax.device_put(parts, PartitionSpec(axes))
        found = jax.jit(jax.shard_map(local, in_specs=PartitionSpec(axes), out_specs=out))(placed)
        assert found.sharding.spec[dimension] == axes or found.sharding.spec[dimension] == axes[0]
        whole = jax.jit(lambda x: reshard(x, PartitionSpec()))(found)
    np.testing.assert_allclose(whole, parts.sum(0), rtol=1e-5, atol=1e-5)


def test_reduce_scatter_sends_the_same_bytes_in_stages(mesh_of):
    """Of 64 elements: stages of 2 end in 32, 16 and 8 elements; one stage ends in 8."""
    axes, spec = ("fsdp",), PartitionSpec("fsdp")
    with mesh_of(fsdp=8):
        placed = jax.device_put(np.ones((8, 64), np.float32), spec)
        text = {
            stage: jax.jit(jax.shard_map(lambda x, n=stage: reduce_scatter(x[0], axes, 0, stage=n), out_specs=spec))
            .lower(placed)
            .compile()
            .as_text()
            for stage in (2, 8)
        }
    ends = {
        stage: [np.prod([int(n) for n in s.split(",")]) for s in collectives(t, "reduce-scatter")]
        for stage, t in text.items()
    }
    assert ends[8] == [8]
    assert sorted(ends[2]) == [8, 16, 32]
