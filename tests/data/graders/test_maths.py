"""Answers of competition mathematics."""

import importlib.util

import pytest

from data.graders import symbolic
from data.graders.maths import answer_in, grade_answer, plain
from maverick_jax.errors import InputError

needs_library = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="the extra `eval` is absent")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"), ("\\boxed{1} no, \\boxed{2}", "2"), ("\\boxed{{a}", None),
        ("\\fbox{3} \\framebox{204}", "204"), ("The answer is $7$.", "7"), ("Answer: **x+1**", "x+1"),
        ("nothing", None), ("\\boxed 5 ", "5"), ("\\boxed{}", None), ("the answer is 3\nthe final answer is 4", "4"),
    ],
)  # fmt: skip
def test_the_answer_of_a_reply(text, answer):
    assert answer_in(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\dfrac12", "\\frac{1}{2}"), ("90^\\circ", "90"), ("10,000", "10000"), ("x = 5", "5"), ("025", "25"),
        ("\\text{Evelyn}", "Evelyn"), ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"), ("50\\%", "50"),
        ("12\\text{ cm}^2", "12"), ("$70 \\sqrt{2}$", "70\\sqrt2"),
    ],
)  # fmt: skip
def test_texts_that_are_equal(one, other):
    assert plain(one) == plain(other)


def test_what_is_too_much_is_not_parsed():
    for text in ("1" * 2000, "9" * 61, "(" * 30, "9^{99999}", "3!!!!", "2" + "^2" * 21):
        assert symbolic.too_much(text) and symbolic.difference("1", text)


def test_without_the_library_it_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs math-verify, of the extra `eval`"):
        grade_answer("\\boxed{1}", "x")
    assert grade_answer("\\boxed{1}", "1").score == 1, "equal texts need no library"


@needs_library
@pytest.mark.slow
def test_symbolic_equality():
    pairs = {("\\frac{1}{2}", "0.5"): True, ("2\\sqrt{3}", "\\sqrt{12}"): True, ("x^2-1", "(x-1)(x+1)"): True,
             ("3", "4"): False, ("(1,2)", "(2,1)"): False}  # fmt: skip
    for (one, other), equal in pairs.items():
        assert (symbolic.difference(one, other) == "") == equal, (one, other)
    assert symbolic.difference("1", "9^{9^{9^{9}}}") == "the comparison was too much"
    assert symbolic.difference("1", "1") == "", "the process starts again"
    assert symbolic.difference("1", "__import__('os')") == "cannot be parsed"
