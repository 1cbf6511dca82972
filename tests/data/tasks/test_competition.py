"""Competition mathematics: files, and the reference solutions of the real data."""

import json

import pytest

from data.tasks.base import Graded
from data.tasks.competition import Competition
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply
from tests.helpers.shared_data import SHARED, needs_shared


def test_levels_and_subjects_have_figures(tmp_path):
    rows = [{"problem": "1+1", "answer": 2, "level": 1}, {"problem": "x", "answer": "\\frac12", "level": 2, "id": 9}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Competition(path=str(tmp_path / "a.jsonl"))
    one, two = task.examples()
    assert (one.id, two.id, one.references) == ("0", "9", ("2",))
    graded = [Graded(e, Reply(r), task.grade(e, Reply(r))) for e, r in [(one, "\\boxed{2}"), (two, "none")]]
    assert {name: found.value for name, found in task.figures(graded).items()} == {"level 1": 1, "level 2": 0}
    assert not graded[1].grade.answered


def test_answers_must_be_texts_or_numbers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "x", "answer": [1]}\n')
    with pytest.raises(InputError, match=r"answer: expected LaTeX or a whole number, got \[1\]"):
        Competition(path=str(tmp_path / "a.jsonl")).examples()


@needs_shared
def test_the_reference_solutions_are_right():
    for name, count in (("math500.jsonl", 250), ("aime24.jsonl", 15)):
        task = Competition(path=str(SHARED / name))
        rows = [json.loads(line) for line in (SHARED / name).read_text().splitlines()]
        replies = [row["solution"] if name == "math500.jsonl" else f"\\boxed{{{row['answer']}}}" for row in rows]
        grades = [task.grade(e, Reply(reply)) for e, reply in zip(task.examples(), replies, strict=True)]
        assert len(grades) == count
        assert [grade.reason for grade in grades if grade.parts["text"] < 1] == []
