"""Each device gets its share of the matrices whole, and the shards come back where they were."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.matrix_shares import MatrixShares

SIZES = {"fsdp": 2, "expert": 2, "tensor": 2}


@pytest.mark.parametrize(
    "axes",
    [(("fsdp", "expert"), ("tensor",)), (("tensor",), (), ("fsdp",)), ((), ("expert",)), ((), ())],
    ids=str,
)
@pytest.mark.parametrize("n", [1, 5, 16])
def test_shares_are_whole_and_shards_return(n, axes, mesh_of):
    """Matrix i of n lies on device i // ceil(n/G) of its group of G. Where one is left over, zeros are in its place."""
    x = np.random.default_rng(0).normal(size=(n, *[8] * len(axes))).astype(np.float32)
    spec = P(None, *(a or None for a in axes))
    group = [axis for found in axes for axis in found]
    parts = 2 ** len(group)

    def local(shards):
        shares = MatrixShares(axes, shards.shape[1:])
        whole = shares.collect(shards)
        return whole, shares.distribute(whole, n), shares.distribute(2 * whole, n)

    with mesh_of(**SIZES):
        out = P(tuple(group) or None), spec, spec
        found = jax.jit(jax.shard_map(local, in_specs=spec, out_specs=out))(jax.device_put(x, spec))
    whole, back, doubled = map(np.asarray, found)
    share = -(-n // parts)
    assert whole.shape == (share * parts, *x.shape[1:])
    np.testing.assert_array_equal(whole[:n], x)
    assert not whole[n:].any()
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(doubled, 2 * x)
