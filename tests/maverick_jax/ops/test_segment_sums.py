"""Sums over parts of rows equal those over a table of parts, in value and gradient, also where devices share rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.segment_sums import (
    at_segments,
    at_segments_reference,
    segment_sums,
    segment_sums_reference,
)
from tests.helpers import tiny
from tests.maverick_jax.ops.test_ops import RULES, check_close, random, value_and_gradients


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "tensor": 4}, {"context": 2, "data": 4}], ids=str)
def test_equals_the_table(sizes, mesh_of):
    B, T, count = 8, 16, 5
    values = random(B, T)
    numbers = np.random.default_rng(1).integers(-1, count + 2, (B, T)).astype(np.int32)  # some are in no part
    expected = value_and_gradients(lambda x: segment_sums_reference(x, jnp.asarray(numbers), count), values)
    with mesh_of(**sizes):
        fields = tiny.placed({"tokens": numbers[None], "loss_weights": values[None]})
        at, x = fields["tokens"][0], fields["loss_weights"][0]
        found, (gradient,) = value_and_gradients(lambda x: segment_sums(x, at, count), x)
        check_close(found, expected[0])
        split = tiny.RowSplit.of(T, RULES, jax.sharding.get_mesh().shape)
        check_close(split.whole(np.asarray(gradient), 1), np.asarray(expected[1][0]))


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "tensor": 4}, {"context": 2, "data": 4}], ids=str)
def test_numbers_of_parts_at_their_tokens_equal_the_table(sizes, mesh_of):
    B, T, count = 8, 16, 5
    sums, weights = random(B, count), random(B, T)
    numbers = np.random.default_rng(1).integers(-1, count, (B, T)).astype(np.int32)
    at = lambda sums: weights * at_segments_reference(sums, jnp.asarray(numbers))
    expected = value_and_gradients(at, sums)
    with mesh_of(**sizes):
        fields = tiny.placed({"tokens": numbers[None], "loss_weights": weights[None]})
        split = tiny.RowSplit.of(T, RULES, jax.sharding.get_mesh().shape)
        found, (gradient,) = value_and_gradients(
            lambda sums: fields["loss_weights"][0] * at_segments(sums, fields["tokens"][0]), sums
        )
        check_close(split.whole(np.asarray(found), 1), np.asarray(expected[0]))
        check_close(gradient, expected[1][0])
