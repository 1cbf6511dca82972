"""Rows that devices share, brought to the order of devices and back."""

import jax
import numpy as np
import pytest

from maverick_jax.ops.row_split import places, row_split, split_rows, whole_rows
from tests.helpers.tiny import RULES

SIZES = [{"context": 2}, {"context": 4, "fsdp": 2}, {"data": 2}]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shape", [(2, 16), (2, 16, 3)])
def test_split_rows_and_whole_rows(sizes, shape, mesh_of):
    x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    with mesh_of(**sizes):
        split = row_split(16, RULES)
        assert split.ways == sizes.get("context", 1)
        placed = jax.device_put(x, RULES("batch", None, *(None,) * (len(shape) - 2)))
        divided = jax.jit(lambda x: split_rows(x, RULES))(placed)
        whole = jax.jit(lambda x: whole_rows(x, RULES))(divided)
    np.testing.assert_array_equal(divided, x[:, split.places])
    np.testing.assert_array_equal(whole, x)
    assert tuple(jax.typeof(whole).sharding.spec[:2]) == tuple(RULES("batch", None))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_places_are_those_of_the_row(sizes, mesh_of):
    with mesh_of(**sizes):
        found = jax.jit(lambda: places(16, RULES))()
        np.testing.assert_array_equal(np.asarray(found), row_split(16, RULES).places[None])
