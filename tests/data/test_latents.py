"""How many steps of a thought latents replace: by stage, with shares of other forms, a pure function of the number."""

import numpy as np
import pydantic
import pytest

from data.latents import LatentSteps

NUMBERS = np.arange(20_000)


def test_a_stage_replaces_its_number_of_steps_and_no_more_than_there_are():
    assert (LatentSteps(replaced=2).of_documents(NUMBERS, 3, 0) == 2).all()
    assert (LatentSteps(replaced=5).of_documents(NUMBERS, 3, 0) == 3).all()


def test_shares_of_other_stages_and_of_none():
    """Of 0.3, a third each has 0, 1 and 2 replaced; 0.2 have none. Standard deviations are below 0.004."""
    found = LatentSteps(replaced=2, mix=0.3, off=0.2).of_documents(NUMBERS, 3, 7)
    shares = np.bincount(found, minlength=4) / NUMBERS.size
    np.testing.assert_allclose(shares, [0.3, 0.1, 0.6, 0.0], atol=0.015)


def test_a_document_has_the_same_form_whichever_others_are_asked_for():
    steps = LatentSteps(replaced=1, mix=0.5, off=0.1)
    whole = steps.of_documents(NUMBERS, 3, 7)
    np.testing.assert_array_equal(steps.of_documents(NUMBERS[5:9], 3, 7), whole[5:9])
    assert (steps.of_documents(NUMBERS, 3, 8) != whole).any()


def test_shares_of_more_than_all_are_refused():
    with pytest.raises(pydantic.ValidationError, match=r"mix \(0.7\) and off \(0.4\) are more than all documents"):
        LatentSteps(mix=0.7, off=0.4)
