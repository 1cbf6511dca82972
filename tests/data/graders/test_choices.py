"""Letters in replies, and likelihoods of choices."""

import pytest

from data.graders.choices import grade_letter, grade_likelihoods, letter_in


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"), (" (c) ", None), ("(C)", "C"), ("**Answer: C**", "C"), ("The answer is (B).", "B"),
        ("Answer: \\boxed{D}", "D"), ("A looks right at first.\nAnswer: B", "B"), ("Answer: A\nNo. Answer: D", "D"),
        ("B) because", "B"), ("I think A dog did it", None), ("The correct option is C, not D", "C"), ("", None),
        ("Answer: E", None), ("Steps.\n\n**B**", "B"), ("\uff21nswer: \uff23", "C"), ("The choice is Apple", None),
    ],
)  # fmt: skip
def test_the_letter_that_a_reply_states(text, letter):
    assert letter_in(text, 4) == letter


def test_a_reply_without_a_letter_has_no_answer():
    assert grade_letter("Answer: B", 1, 4).score == 1
    assert grade_letter("Answer: A", 1, 4) == (0.0, "expected B, got A", True, {})
    assert not grade_letter("who knows", 1, 4).answered


def test_the_likeliest_choice_counts_and_per_byte_is_a_part():
    found = grade_likelihoods((" yes", " not at all"), [-2.0, -3.0], right=1)
    assert (found.score, dict(found.parts)) == (0.0, {"per_byte": 1.0})
    assert grade_likelihoods((" A", " B"), [-1.0, -1.0], right=0).score == 1, "of equal ones the first"
