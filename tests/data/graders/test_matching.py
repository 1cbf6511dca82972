"""Numbers in answers."""

import pytest

from data.graders.matching import number_in, number_of, numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,234.50.", "1234.5"), ("in 2 days.", "2"), ("x = -3", "-3"), ("is \u22125", "-5"), ("3-5", "5"),
        ("\uff11\uff12", "12"),
        ("\u0967\u0968", "12"), ("from 15-20", "20"), (".5", "0.5"), ("1.0 then 7", "7"), ("no", None),
        ("v1.2", "1.2"), ("80\uff0c000", "80000"),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text, number):
    found = number_in(text)
    assert found == number_of(number) if number else found is None


def test_texts_that_are_no_numbers():
    assert [number_of(text) for text in ("", "1e5", "1" * 400, "--1", "1 2")] == [None] * 5
    assert not numeric("none", ["1"]).answered
