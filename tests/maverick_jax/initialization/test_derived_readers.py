"""Readers of rows that belong to other tokens, against a loop over tokens."""

import numpy as np
import pytest

from maverick_jax.initialization.derived_readers import OfTokens
from maverick_jax.text.tokenizers.vocabulary_move import VocabularyMove


class InMemory:
    def __init__(self, array: np.ndarray):
        self.array, self.shape = array, array.shape

    def __call__(self, index, dtype):
        return self.array[index].astype(dtype)


def twin(array: np.ndarray, axis: int, found: list[list[int]], unused: list[int], lowered: np.ndarray) -> np.ndarray:
    rows = np.moveaxis(array, axis, 0)
    out = np.zeros((len(found), *rows.shape[1:]), np.float32)
    for token, pieces in enumerate(found):
        for piece in pieces:
            out[token] += rows[piece] / len(pieces)
        if lowered[token]:
            out[token] += sum(rows[i] for i in unused) / len(unused)
    return np.moveaxis(out, 0, axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_tokens_equal_a_loop_over_tokens(axis):
    random = np.random.default_rng(axis)
    array = random.standard_normal((11, 6) if axis == 0 else (6, 11)).astype(np.float32)
    found = [random.integers(0, 11, size=n).tolist() for n in (1, 0, 3, 1, 2, 0, 0, 4, 1, 0)]
    counts = np.array(list(map(len, found)))
    move = VocabularyMove(np.concatenate(found).astype(int), counts, np.array([9, 10]), tokens=10)
    lowered = counts != 1
    reader = OfTokens(InMemory(array), axis, move, lowered)
    expected = twin(array, axis, found, [9, 10], lowered)
    assert reader.shape == expected.shape and reader.order[-1] == axis
    for begin in range(10):
        for end in range(begin + 1, 11):
            index = [slice(1, 4), slice(1, 4)]
            index[axis] = slice(begin, end)
            part = reader(tuple(index), np.dtype(np.float32))
            np.testing.assert_allclose(part, expected[tuple(index)], atol=1e-6)
    kept = np.take(expected, np.flatnonzero(counts == 1), axis)
    np.testing.assert_array_equal(kept, np.take(array, [found[i][0] for i in np.flatnonzero(counts == 1)], axis))


def test_kept_rows_of_bfloat16_are_exact():
    import ml_dtypes

    array = np.random.default_rng(0).standard_normal((5, 3)).astype(ml_dtypes.bfloat16)
    move = VocabularyMove(np.array([4, 2]), np.array([1, 1]), np.array([], np.int64), tokens=2)
    reader = OfTokens(InMemory(array), 0, move, np.zeros(2, bool))
    read = reader((slice(0, 2), slice(0, 3)), np.dtype(ml_dtypes.bfloat16))
    assert read.dtype == array.dtype and read.tobytes() == array[[4, 2]].tobytes()
