"""One slot's entries are taken from and put to whichever device holds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.slots import put_slot, take_slot
from maverick_jax.sharding import ShardingRules

RULES = ShardingRules()


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "tensor": 2}], ids=str)
def test_slots_are_taken_and_put(mesh, mesh_of):
    whole = np.arange(4 * 2 * 6 * 3).reshape(4, 2, 6, 3)
    with mesh_of(**mesh):
        x = jax.device_put(whole, RULES("batch", "kv_heads", None, None))
        for slot in range(4):
            number = jnp.int32(slot)
            taken = jax.jit(lambda x, i: take_slot(x, i, RULES, (2, 4, 3)))(x, number)
            np.testing.assert_array_equal(taken, whole[slot, :, :4])
            expected = whole.copy()
            expected[slot, :, :4] = whole[1, :, :4]
            entry = jax.jit(lambda x: take_slot(x, jnp.int32(1), RULES, (2, 4, 3)))(x)
            np.testing.assert_array_equal(jax.jit(lambda x, e, i: put_slot(x, e, i, RULES))(x, entry, number), expected)
        unchanged = jax.jit(lambda x, e, i: put_slot(x, e, i, RULES))(x, entry, jnp.int32(9))
        np.testing.assert_array_equal(unchanged, whole)
        flags = jax.device_put(np.array([True, False, True, False]), RULES("batch"))
        put = jax.jit(lambda x, i: put_slot(x, jnp.ones((), bool), i, RULES))(flags, jnp.int32(1))
        assert put.tolist() == [True, True, True, False]
