"""Rows in tiles, each of one expert."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maverick_jax.ops.grouped_matmul.tiles import plan_tiles


@settings(max_examples=15)
@given(st.data())
def test_tiles_contain_every_row_once(data):
    E, rows = data.draw(st.sampled_from([(1, 4), (3, 4), (6, 1)]))
    expert = np.array(data.draw(st.lists(st.integers(0, E), min_size=24, max_size=24)), np.int32)
    tiles = jax.jit(plan_tiles, static_argnums=(1, 2))(jnp.asarray(expert), E, rows)
    slots, row_of_slot = np.asarray(tiles.slot_of_row), np.asarray(tiles.row_of_slot)
    for row, e in enumerate(expert):
        if e == E:
            assert slots[row] == len(row_of_slot)
        else:
            assert row_of_slot[slots[row]] == row
            assert tiles.expert_of_tile[slots[row] // rows] == e
            assert slots[row] // rows < int(tiles.num_used)
    assert (row_of_slot < len(expert)).sum() == (expert < E).sum()
