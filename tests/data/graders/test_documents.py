"""Relaxed accuracy and ANLS."""

import random

import pytest

from data.graders.documents import anls, edit_distance, grade_anls, grade_relaxed, relaxed, similarity


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("10", "10.4", True), ("10", "10.6", False), ("0", "0", True), ("0.01", "0", False), ("50%", "0.5", True),
        ("50%", "50", True), ("50", "50%", True), ("$1,200", "1200", True), ("Yes", "yes", True), ("Yes", "no", False),
        ("10", "ten", False), ("-10", "10", False), ("9.5", "10", True), ("New  York", "new york", True),
    ],
)  # fmt: skip
def test_relaxed_accuracy(answer, reference, right):
    assert relaxed(answer, [reference]) == right


def test_only_a_stated_answer_counts_and_other_rules_are_parts():
    found = grade_relaxed("It is 14 in 2003.\nAnswer: 14.", ["14", "fourteen"])
    assert (found.score, dict(found.parts)) == (1.0, {"exact": 1.0, "anywhere": 1.0})
    near = grade_relaxed("**Answer: 14.5**", ["14"])
    assert near.score == 1 and near.parts["exact"] == 0
    hidden = grade_relaxed("It is 14,\nI think.", ["14"])
    assert (hidden.score, hidden.answered, hidden.parts["anywhere"]) == (0.0, False, 1.0)


def test_anls_is_the_similarity_to_the_nearest_reference_from_one_half_on():
    assert anls("Hello World", ["hello  world"]) == 1 and anls("abcd", ["abxx"]) == 0.5 and anls("abcd", ["axxx"]) == 0
    assert anls("hell", ["x", "hello"]) == pytest.approx(0.8)
    assert grade_anls("Answer: hell", ["hello"]).score == pytest.approx(0.8)
    assert similarity("a" * 3000, "a" * 3000) == 1 and similarity("a" * 3000, "b") == 0


def test_edit_distances_equal_those_of_the_recursive_definition():
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = random.Random(0)
    for _ in range(60):
        a, b = ("".join(draw.choices("ab", k=draw.randint(0, 5))) for _ in range(2))
        assert edit_distance(a, b) == slow(a, b)
