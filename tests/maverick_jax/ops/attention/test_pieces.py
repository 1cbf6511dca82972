"""Packed rows as pieces, against a slow twin that goes through them token by token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.attention.pieces import Pieces
from maverick_jax.ops.attention.spec import Segments


def rows_of(lengths: list[list[int]], T: int) -> Segments:
    """Rows with segments of these lengths, one after the other; a negative length is padding."""
    positions, ids = np.zeros((2, len(lengths), T), np.int32)
    for row, of_row in enumerate(lengths):
        at = 0
        for number, n in enumerate(of_row, 1):
            if n > 0:
                positions[row, at : at + n], ids[row, at : at + n] = np.arange(n), number
            at += abs(n)
    return Segments(jnp.asarray(positions), jnp.asarray(ids))


def twin(segments: Segments, chunk: int | None) -> list[tuple[int, int]]:
    """(start, length) of each piece in the rows end to end."""
    found, last = [], None
    for row, (positions, ids) in enumerate(
        zip(*map(np.asarray, (segments.positions, segments.segment_ids)), strict=True)
    ):
        for t, (position, number) in enumerate(zip(positions, ids, strict=True)):
            here = None if number == 0 else (row, number, 0 if chunk is None else position // chunk)
            if here is not None and here == last:
                found[-1] = found[-1][0], found[-1][1] + 1
            elif here is not None:
                found.append((row * ids.size + t, 1))
            last = here
    return found


@jax.jit
def slots(pieces, first):
    return pieces.slots(first, 4)


def check(segments: Segments, chunk: int | None) -> None:
    B, T = segments.segment_ids.shape
    pieces, expected = Pieces.of(segments, chunk), twin(segments, chunk)
    assert int(pieces.count) == len(expected)
    index, place = np.full(B * T, -1), np.zeros(B * T, int)
    for number, (start, length) in enumerate(expected):
        index[start : start + length], place[start : start + length] = number, np.arange(length)
    np.testing.assert_array_equal(pieces.index.reshape(-1), index)
    np.testing.assert_array_equal(np.where(index < 0, 0, pieces.place.reshape(-1)), place)
    for first in range(0, len(expected) + 4, 4):
        here = expected[first : first + 4] + [(B * T, 0)] * 4
        starts, lengths = slots(pieces, first)
        assert [*zip(starts.tolist(), lengths.tolist(), strict=True)] == here[:4]
        inside = (index >= first) & (index < first + 4)
        np.testing.assert_array_equal(pieces.among(first, 4).reshape(-1), inside)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 4])
def test_pieces_of_every_row_of_six_tokens(chunk):
    """All ways to cut six tokens into segments, padding before, between and after them included; two rows."""
    cut = [np.diff([0, *ends, 6]).tolist() for n in range(6) for ends in itertools.combinations(range(1, 6), n)]
    padded = [[sign * n for sign, n in zip(signs, of_row, strict=True)]
              for of_row in cut for signs in itertools.product((1, -1), repeat=len(of_row))]  # fmt: skip
    assert len(padded) == 486
    for first, second in zip(padded, padded[7:] + padded[:7], strict=True):
        check(rows_of([first, second], 6), chunk)


def test_segments_that_begin_in_an_earlier_shard_are_cut_at_their_own_chunks():
    ids = jnp.ones((1, 8), jnp.int32)
    pieces = Pieces.of(Segments(jnp.arange(5, 13, dtype=jnp.int32)[None], ids), 4)
    assert pieces.index.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]
