"""Mixtures: exact shares, no row twice, random access."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.rows.mixture import MAX_BLOCK, Continued, Moving, Sequential, Weighted
from maverick_jax.errors import InputError


def _named(weights) -> dict[str, float]:
    return {f"s{i}": weight for i, weight in enumerate(weights)}


@given(st.lists(st.sampled_from([0.1, 0.25, 0.7, 1.0, 3.0, 10.0]), min_size=1, max_size=5))
def test_shares_are_exact_in_every_block_and_close_in_between(weights):
    mixture = Weighted(_named(weights))
    drawn = [mixture.locate(row) for row in range(2 * mixture.block)]
    for block in (drawn[: mixture.block], drawn[mixture.block :]):
        counts = collections.Counter(source for source, _ in block)
        for source, weight in enumerate(weights):
            assert counts[source] == pytest.approx(weight / sum(weights) * mixture.block, abs=1e-6)
    so_far = [0] * len(weights)
    for number, (source, index) in enumerate(drawn, start=1):
        assert index == so_far[source]
        so_far[source] += 1
        for s, weight in enumerate(weights):
            assert abs(so_far[s] - number * weight / sum(weights)) <= len(weights)
    assert mixture.shares() == pytest.approx([weight / sum(weights) for weight in weights])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 40))
def test_counts_are_those_of_the_rows_one_by_one(numbers, rows, first):
    moving = Moving(_named(map(float, numbers)), _named(map(float, reversed(numbers))), rows // 2)
    mixtures = [Weighted(_named(map(float, numbers))), Sequential(numbers), moving]
    for mixture in [*mixtures, *(Continued(m, first, [0] * len(numbers)) for m in mixtures)]:
        drawn = collections.Counter(mixture.locate(row)[0] for row in range(rows))
        assert mixture.counts(rows) == [drawn[s] for s in range(len(numbers))]


def test_a_mixture_goes_on_from_any_row():
    whole = Weighted(_named([3.0, 1.0]))
    rest = Continued(whole, 5, [10, -1])
    for row in range(20):
        source, at = whole.locate(5 + row)
        assert rest.locate(row) == (source, at + (10, -1)[source])
    assert rest.shares() == whole.shares()


def test_weights_move_in_a_straight_line():
    mixture = Moving(_named([3.0, 1.0]), _named([0.0, 1.0]), 64_000)
    drawn = [mixture.locate(row) for row in range(64_000)]
    for source in (0, 1):
        assert [at for s, at in drawn if s == source] == list(range(mixture.counts(64_000)[source]))
    shares = lambda low, high: sum(source == 0 for source, _ in drawn[low:high]) / (high - low)
    weight = lambda at: 3 * (1 - at) / (3 * (1 - at) + 1)
    for piece in (0, 20, 40, 63):
        assert shares(piece * 1000, piece * 1000 + 1000) == pytest.approx(weight((piece + 0.5) / 64), abs=2e-3)
    assert mixture.shares()[0] == pytest.approx(shares(0, 64_000))


def test_weights_that_have_moved_stay():
    mixture = Moving(_named([1.0, 1.0]), _named([1.0, 3.0]), 100)
    later = [mixture.locate(row)[0] for row in range(100, 1100)]
    assert sum(later) / 1000 == pytest.approx(0.75, abs=0.01)
    assert mixture.locate(100)[1] == mixture.counts(100)[later[0]]


def test_simple_weights_have_short_blocks():
    assert Weighted(_named([1.0, 1.0])).block == 2
    assert Weighted(_named([0.7, 0.3])).block == 10
    assert [Weighted(_named([0.75, 0.25])).locate(row) for row in range(4)] == [(0, 0), (0, 1), (1, 0), (0, 2)]


def test_awkward_weights_are_rounded_by_less_than_one_row_in_a_block():
    weights = [0.123456789, 3.14159265, 1e-4]
    mixture = Weighted(_named(weights))
    assert mixture.block == MAX_BLOCK
    for share, weight in zip(mixture.shares(), weights, strict=True):
        assert abs(share - weight / sum(weights)) < 1 / MAX_BLOCK
    drawn = collections.Counter(mixture.locate(row)[0] for row in range(MAX_BLOCK))
    assert [drawn[s] for s in range(3)] == mixture.counts(MAX_BLOCK)


def test_a_distant_row_can_be_located():
    mixture = Weighted(_named([2.0, 1.0]))
    assert mixture.locate(3 * 10**15 + 1) == (1, 10**15)


def test_weights_too_small_to_be_drawn_are_refused():
    with pytest.raises(InputError, match=r"data.sources.s1.weight: 1e-09 is under 1/65536"):
        Weighted(_named([1.0, 1e-9, 0.123456789]))


def test_sequential_sources():
    turns = Sequential([3, 1, 2])
    assert [turns.locate(row) for row in range(8)] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (0, 3), (0, 4)]
    assert turns.shares() == pytest.approx([1 / 2, 1 / 6, 1 / 3])
