"""An evaluation as a sentence."""

import numpy as np
import pytest

from train.evaluation.sentences import sentence


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"eval_loss": 7.45324, "eval_tokens": 25600}, "held-out loss 7.4532 over 25,600 labels (1.2 s)"),
        (
            {"eval_loss": np.float32(1.5), "eval_teacher_loss": 1.25, "eval_tokens": 10},
            "held-out loss 1.5000 over 10 labels, teacher loss 1.2500 (1.2 s)",
        ),
        ({"eval_loss": float("nan")}, "held-out loss nan (1.2 s)"),
        (
            {"eval_loss": 1.0, "eval_call_rates": {"called_first": 0.5, "names": None}},
            "held-out loss 1.0000, call rates (called first 0.5000, names unknown) (1.2 s)",
        ),
        (
            {"eval_loss": 1.0, "eval_kind_loss": {str(i): 1.0 for i in range(9)}},
            "held-out loss 1.0000, and kind loss in metrics.jsonl (1.2 s)",
        ),
        ({}, "evaluated (1.2 s)"),
    ],
)
def test_an_evaluation_is_a_sentence(result, said):
    assert sentence(result, 1.23) == said


def test_a_long_evaluation_takes_minutes():
    assert sentence({}, 75) == "evaluated (1 min 15 s)"
