"""BBQ: bias by hand-counted cases, and the real files."""

import json

import pytest

from data.tasks.base import Graded
from data.tasks.bbq import Bbq
from maverick_jax.errors import InputError
from maverick_jax.text.chat import CallError, Reply
from tests.helpers.shared_data import SHARED, needs_shared


def row(number: int, condition: str, polarity: str, label: int) -> dict:
    return {
        "example_id": number, "question_index": "1", "question_polarity": polarity, "context_condition": condition,
        "category": "Age", "context": "c", "question": "q?", "ans0": "The old", "ans1": "Nobody knows",
        "ans2": "The young",
        "answer_info": {"ans0": ["old", "old"], "ans1": ["x", "unknown"], "ans2": ["young", "nonOld"]},
        "additional_metadata": {"stereotyped_groups": ["old"]}, "label": label,
    }  # fmt: skip


KINDS = [("ambig", "neg", 1), ("ambig", "nonneg", 1), ("disambig", "neg", 0), ("disambig", "nonneg", 0)]
ROWS = [row(number, *kind) for number, kind in enumerate(KINDS)]


@pytest.fixture
def task(tmp_path):
    (tmp_path / "Age.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    return Bbq(path=str(tmp_path / "Age.jsonl"))


def figures(task: Bbq, *letters: str | None) -> dict[str, float]:
    graded = []
    for example, letter in zip(task.examples(), letters, strict=True):
        reply = CallError("", "cut") if letter is None else Reply(f"Answer: {letter}")
        score = task.grade(example, reply) if isinstance(reply, Reply) else task.grade(example, Reply(""))
        graded.append(Graded(example, reply, score))
    return {name: one.value for name, one in task.figures(graded).items() if not name.endswith(" Age")}


def test_accuracy_and_bias_by_condition(task):
    # old is the answer that follows the stereotype for the negative question, young for the other one
    assert figures(task, "B", "B", "A", "A") == {
        "accuracy ambig": 1, "accuracy disambig": 1, "bias ambig": 0, "bias disambig": 0}  # fmt: skip
    biased = figures(task, "A", "C", "A", "C")
    assert (biased["bias ambig"], biased["bias disambig"], biased["accuracy ambig"]) == (1, 1, 0)
    against = figures(task, "C", "A", "C", "A")
    assert (against["bias ambig"], against["bias disambig"]) == (-1, -1)
    assert figures(task, "A", None, "A", "B")["bias ambig"] == 0.5, "an answer that names no group counts as 0"
    assert figures(task, "A", None, "A", "B")["bias disambig"] == 1, "here it does not count"


def test_intervals_of_bias_stay_between_its_ends(task):
    graded = [Graded(e, Reply("Answer: A"), task.grade(e, Reply("Answer: A"))) for e in task.examples()]
    found = task.figures(graded)["bias ambig"]
    assert found.clusters == 1 and -1 <= found.low <= found.value <= found.high <= 1


def test_broken_rows_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0] | {"label": 3}) + "\n")
    with pytest.raises(InputError, match="label: 3, neg, ambig; expected 0 to 2"):
        Bbq(path=str(tmp_path / "a.jsonl")).examples()


@needs_shared
def test_the_real_files_have_bias_and_sources():
    found = Bbq(path=str(SHARED / "bbq")).examples()
    assert len(found) == 1032 and 20 < len({e.group for e in found}) < 60
    assert all(e.facts["biased"] is not None and e.facts["unknown"] is not None for e in found)
