"""The best rate that the width benchmark finds, and what its runs differ by."""

import pytest

from benchmarks.width_transfer import BASE, COARSE, best_of, optimum, run_config, summary
from maverick_jax.config import ModelConfig


def losses(best: float) -> list[float]:
    return [2.0 + abs(k - best) ** 2 for k in range(len(COARSE))]


def runs(best: float, step: float = 1.0) -> dict[float, list[dict]]:
    """Of two seeds, whose losses are lowest `step` places apart."""
    of = lambda i, seed: losses(best + step * seed)[i]
    return {rate: [{"choosing": of(i, n), "judging": of(i, n)} for n in (0, 1)] for i, rate in enumerate(COARSE)}


def test_the_optimum_of_a_parabola_is_found_between_the_rates():
    assert optimum(COARSE, losses(2.3)) == pytest.approx(COARSE[0] * 2.0**2.3)
    assert optimum(COARSE, losses(-0.4)) == COARSE[0] and optimum(COARSE, losses(9)) == COARSE[-1]


def test_ratios_are_to_the_base_width_of_the_same_form():
    found = {("scaled", BASE): runs(2.0), ("scaled", 4 * BASE): runs(2.4)}
    of_base, of_wide = summary(found)
    assert of_base["ratio"] == 1 and of_base["cost_of_base_rate"] == [0, 0]
    assert of_wide["ratio"] == pytest.approx(2**0.4) == of_wide["ratios_of_seeds"][0]
    assert best_of(found["scaled", BASE])["of_seeds"] == pytest.approx([COARSE[2], COARSE[3]])


def test_forms_differ_by_the_base_width_alone():
    of = lambda form, width: run_config(form, width, COARSE[0], 0).model.network
    standard, scaled = (of(form, 4 * BASE) for form in ("standard", "scaled"))
    assert (standard.base_width, scaled.base_width) == (None, BASE)
    assert standard == scaled.model_copy(update={"base_width": None})
    narrow = ModelConfig(**of("scaled", BASE).model_dump())
    assert narrow.hidden_size == narrow.base_width and narrow.num_parameters() < scaled.hidden_size**2 * 99
