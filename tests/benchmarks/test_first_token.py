"""Figures of the time to the first token: what is compared, and prompts with latents."""

import pytest

from benchmarks.first_token import compared, prompt_of


def test_prompts_differ_in_latents_and_two_tokens_around_them():
    plain, with_two = prompt_of(5, 0, 99, 3), prompt_of(5, 2, 99, 3)
    assert len(plain) == 5 and with_two[:5] == plain
    assert with_two[6:8] == [99, 99] and len(with_two) == 9 and 99 not in plain


def test_ratios_are_compared_with_one_step_for_each_latent_and_one_for_the_end():
    found = compared({"first": [1.0, 1.0], "more": [4.2, 4.2], "2": [1.3, 1.36]}, [2])
    assert found["step"] == pytest.approx(0.1)
    assert found["latents"][2] == pytest.approx({"measured": 1.33, "closed_form": 1.3, "off": 1.33 / 1.3 - 1})
