"""Which tokens experts of limited capacity take, and how many they drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.expert_limit import within_limit, within_limit_reference
from maverick_jax.row_split import RowSplit
from maverick_jax.sharding import ShardingRules

RULES = ShardingRules()
B, T, E, K = 8, 32, 8, 2


limited = jax.jit(lambda chosen, limit: within_limit(chosen, limit, E, RULES))


def routings():
    """int32[B, T, K] in the order of rows; E means no expert, as padding has it."""
    rng = np.random.default_rng(0)
    random = np.argsort(rng.random((B, T, E)), axis=-1)[..., :K]
    none = np.where(rng.random((B, T, 1)) < 0.3, E, random)
    one = np.stack([np.full((B, T), 3), 4 + np.arange(T)[None, :] % 4 + np.zeros((B, 1), int)], axis=-1)
    return {name: x.astype(np.int32) for name, x in (("random", random), ("padding", none), ("all to one", one))}


@pytest.mark.parametrize("sizes", [{"data": 1}, {"context": 4, "expert": 2}], ids=str)
def test_the_first_tokens_of_each_row_are_taken(sizes, mesh_of):
    """Whatever devices share the rows: they count in the order of the row."""
    split = RowSplit(T, sizes.get("context", 1))
    for limit in (1, 7, T):
        for name, chosen in routings().items():
            expected, count = within_limit_reference(jnp.asarray(chosen), limit, E)
            with mesh_of(**sizes):
                mine = jax.device_put(split.split(chosen, 1), RULES("batch", "length", None))
                taken, dropped = limited(mine, limit)
            np.testing.assert_array_equal(split.whole(np.asarray(taken), 1), expected, err_msg=name)
            assert int(dropped) == int(count) == (chosen < E).sum() - (np.asarray(expected) < E).sum()
            assert (limit < T) == (count > 0)


def test_drops_of_the_most_skewed_routing_are_counted_one_by_one(mesh_of):
    """All tokens to one expert: each row has 32 of them but the last, of 5 tokens and padding."""
    chosen = np.full((B, T, 1), 6, np.int32)
    chosen[-1, 5:] = E
    with mesh_of(data=1):
        taken, dropped = limited(jnp.asarray(chosen), 10)
    assert int(dropped) == (B - 1) * (T - 10)
    np.testing.assert_array_equal(np.asarray(taken)[..., 0] < E, [*[[i < 10 for i in range(T)]] * 7, np.arange(T) < 5])


def test_padding_takes_no_room(mesh_of):
    chosen = jnp.asarray([[E, 2, E, 2, 2, E, 2]], jnp.int32)[..., None]
    with mesh_of(data=1):
        taken, dropped = limited(chosen, 3)
    np.testing.assert_array_equal(taken[0, :, 0], [E, 2, E, 2, 2, E, E])
    assert int(dropped) == 1
