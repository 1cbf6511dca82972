"""DocVQA: all three forms of files."""

import json

import pytest

from data.tasks.doc_vqa import DocVqa
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply

ROW = {"questionId": 7, "question": "Who?", "image": "d/1.png", "answers": ["Ann", "Ann Lee"], "docId": 1}


@pytest.mark.parametrize("form", ["object", "list", "lines"])
def test_forms(tmp_path, form):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.png").touch()
    path = tmp_path / ("q.jsonl" if form == "lines" else "q.json")
    path.write_text(json.dumps({"object": {"data": [ROW]}, "list": [ROW], "lines": ROW}[form]) + "\n")
    task = DocVqa(path=str(path), images=str(tmp_path))
    (example,) = task.examples()
    assert (example.id, example.references) == ("7", ("Ann", "Ann Lee"))
    assert task.grade(example, Reply("Answer: ann le")).score == pytest.approx(6 / 7)


def test_questions_without_answers_are_named(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "q.jsonl").write_text(json.dumps(ROW | {"answers": [], "image": "1.png"}) + "\n")
    with pytest.raises(InputError, match="line 1: answers: empty list"):
        DocVqa(path=str(tmp_path / "q.jsonl"), images=str(tmp_path)).examples()
