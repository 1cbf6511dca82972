"""Intervals and paired tests, compared with SciPy's."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from data.graders.figures import figure, holm, mcnemar, paired, paired_t, scaled, wilson

CASES = [(seed, random.Random(seed).randint(2, 300)) for seed in range(20)]


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (15, 30), (30, 30), (1000, 1319)])
def test_intervals_of_shares_are_wilsons(right, n):
    found = figure([1.0] * right + [0.0] * (n - right))
    expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert (found.value, found.n, found.clusters) == (pytest.approx(right / n), n, None)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("seed", "n"), CASES)
def test_intervals_of_other_means_are_students(seed, n):
    scores = np.random.default_rng(seed).normal(size=n)
    expected = stats.t.interval(0.95, n - 1, scores.mean(), stats.sem(scores))
    assert figure(scores.tolist())[2:4] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("seed", "n"), CASES)
def test_paired_tests_equal_scipys(seed, n):
    draw = np.random.default_rng(seed)
    a, b = draw.random(n) < 0.5, draw.random(n) < 0.6
    found = paired(a.astype(float), b.astype(float))
    lost, won = int((a & ~b).sum()), int((b & ~a).sum())
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert found.test == "mcnemar" and found.p_value == pytest.approx(expected, abs=1e-9)
    assert (found.first_only, found.second_only, found.difference) == (lost, won, pytest.approx(b.mean() - a.mean()))
    x, y = draw.normal(size=n), draw.normal(0.2, size=n)
    assert paired(x, y).p_value == pytest.approx(stats.ttest_rel(x, y).pvalue, abs=1e-9)


def test_the_intervals_of_differences_are_those_of_a_bootstrap():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=200), draw.normal(0.3, size=200)
    found = paired(a, b)
    options = {"n_resamples": 10_000, "method": "percentile", "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((b - a,), np.mean, **options).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert paired(a, b) == found, "the draws are seeded"


def test_sources_that_examples_share_widen_intervals():
    scores, groups = [1.0] * 40 + [0.0] * 40, [i // 10 for i in range(80)]
    alone, clustered = figure(scores), figure(scores, groups)
    assert clustered.clusters == 8 and alone.value == clustered.value
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    # every source has equal scores, so that it counts as one trial: the corrected variance of 8 means is 2 / 7 / 8
    assert (clustered.low, clustered.high) == pytest.approx(wilson(0.5, 0.25 / (2 / 7 / 8)))
    whole = figure([1.0] * 80, groups)
    assert (whole.low, whole.high) == pytest.approx(wilson(1.0, 8)), "sources without any spread count once each"
    same = figure(scores, list(range(80)))
    assert same == alone, "sources of one example each change nothing"


def test_a_clustered_test_is_that_of_the_sources_sums():
    draw = np.random.default_rng(3)
    differences, groups = draw.normal(0.3, size=60), [i // 3 for i in range(60)]
    sums = differences.reshape(20, 3).sum(axis=1)
    assert paired_t(differences, groups) == pytest.approx(stats.ttest_1samp(sums, 0).pvalue, abs=1e-9)
    found = paired(np.zeros(60), (differences > 0).astype(float), groups)
    assert found.test == "t"


def test_edges():
    assert mcnemar(0, 0) == 1 and mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert paired_t([0.5]) == 1 and paired_t([0.0, 0.0]) == 1 and paired_t([1.0, 1.0]) == 0
    assert figure([0.3]).low < 0.3 and figure([-2.0]).low == -math.inf
    assert figure([0.5] * 10)[2:4] == pytest.approx(wilson(0.5, 10)), "no spread is not certainty"
    assert scaled(figure([1.0, 0.0]), 2, -1).value == 0
    for wrong in ([], ()):
        with pytest.raises(ValueError, match="no scores"):
            figure(wrong)
    with pytest.raises(ValueError, match="equally many"):
        paired([1.0], [])


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
