"""How the places of a row are divided among devices."""

import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.row_split import RowSplit
from maverick_jax.sharding import ShardingRules


def test_each_device_holds_a_block_from_each_end():
    split = RowSplit(24, 3)
    assert split.block == 4
    first, second, third = split.places.reshape(3, 8).tolist()
    assert first == [0, 1, 2, 3, 20, 21, 22, 23]
    assert second == [4, 5, 6, 7, 16, 17, 18, 19]
    assert third == [8, 9, 10, 11, 12, 13, 14, 15]


def test_a_row_that_blocks_do_not_divide_is_in_order():
    split = RowSplit(9, 3)
    assert not split.balanced and split.block == 3
    assert split.places.tolist() == list(range(9))


def test_one_device_holds_a_row_in_order():
    split = RowSplit(8, 1)
    assert split.block == 8 and split.places.tolist() == list(range(8))


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_every_device_sees_as_many_earlier_places(ways):
    places = RowSplit(32, ways).places.reshape(ways, -1)
    assert len({int(sum(of + 1)) for of in places}) == 1


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize(("axis", "shape"), [(0, (12,)), (1, (2, 12)), (1, (2, 12, 3)), (2, (1, 2, 12))])
def test_whole_is_the_inverse_of_split(xp, axis, shape):
    split, x = RowSplit(12, 3), xp.arange(np.prod(shape)).reshape(shape)
    divided = split.split(x, axis)
    np.testing.assert_array_equal(divided, np.take(np.asarray(x), split.places, axis))
    np.testing.assert_array_equal(split.whole(divided, axis), x)


def test_of_reads_the_axes_of_the_rules():
    assert RowSplit.of(8, ShardingRules(), {"context": 2, "fsdp": 4}) == RowSplit(8, 2)
    assert RowSplit.of(8, ShardingRules(length=None), {"context": 2}) == RowSplit(8, 1)
    assert RowSplit.of(8, ShardingRules(length=("context", "tensor")), {"context": 2, "tensor": 2}) == RowSplit(8, 4)
