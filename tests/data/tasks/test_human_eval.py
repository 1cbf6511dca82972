"""HumanEval: prompts, programs in replies, and the reference solutions of the real data."""

import json

import pytest

from data.tasks.human_eval import HumanEval
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply
from tests.helpers.sandboxes import needs_sandbox
from tests.helpers.shared_data import SHARED, needs_shared

ROW = {
    "task_id": "T/0",
    "prompt": 'import math\n\ndef other(x):\n    return x\n\ndef area(r):\n    """The area."""\n',
    "entry_point": "area",
    "test": "def check(candidate):\n    assert abs(candidate(1) - math.pi) < 1e-9\n    assert area(0) == other(0)\n",
}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    return str(tmp_path / "a.jsonl")


@needs_sandbox
def test_programs_of_chats_and_of_base_models(path):
    chat, base = HumanEval(path=path), HumanEval(path=path, chat=False)
    (asked,), (begun,) = chat.examples(), base.examples()
    assert begun.prompt == ROW["prompt"] and ROW["prompt"] in asked.prompt.messages[0].text
    assert chat.grade(asked, Reply("Sure:\n```python\ndef area(r):\n    return math.pi * r * r\n```\n")).score == 1
    assert chat.grade(asked, Reply("```python\ndef area(r):\n    return 3\n```")).reason == "a test fails"
    assert base.grade(begun, Reply("    return math.pi * r * r\n\nprint(area(2))\ndef g(")).score == 1
    assert chat.grade(asked, Reply("I cannot do that.")) == (0.0, "no program in 'I cannot do that.'", False, {})


def test_broken_rows_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | {"entry_point": "f()"}) + "\n")
    with pytest.raises(InputError, match=r"line 1: entry_point: 'f\(\)' is not the name of a function"):
        HumanEval(path=str(tmp_path / "a.jsonl")).examples()


@needs_shared
@needs_sandbox
@pytest.mark.slow
def test_the_reference_solutions_pass():
    task = HumanEval(path=str(SHARED / "human_eval.jsonl"), chat=False)
    rows = [json.loads(line) for line in (SHARED / "human_eval.jsonl").read_text().splitlines()]
    wrong = {}
    for example, row in zip(task.examples(), rows, strict=True):
        grade = task.grade(example, Reply(row["canonical_solution"]))
        wrong |= {} if grade.score == 1 else {example.id: grade.reason}
    assert wrong == {} and len(rows) == 100
