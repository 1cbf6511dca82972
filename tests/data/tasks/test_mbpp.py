"""MBPP: tests that call a program by name, and the reference solutions of the real data."""

import json

import pytest

from data.tasks.mbpp import Mbpp
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply
from tests.helpers.sandboxes import needs_sandbox
from tests.helpers.shared_data import SHARED, needs_shared


def task_of(folder, **row) -> Mbpp:
    (folder / "a.jsonl").write_text(json.dumps({"task_id": 1, "prompt": "Sum pairs.", **row}) + "\n")
    return Mbpp(path=str(folder / "a.jsonl"))


@needs_sandbox
def test_tests_call_the_program(tmp_path):
    task = task_of(tmp_path, test=["assert total([Pair(1, 2)]) == 3", "assert set(total.__name__)"])
    (example,) = task.examples()
    assert example.facts["names"] == ["Pair", "total"]
    program = "class Pair:\n    def __init__(self, a, b): self.s = a + b\ndef total(x): return sum(p.s for p in x)\n"
    assert task.grade(example, Reply(f"```python\n{program}```")).score == 1
    assert task.grade(example, Reply(f"```python\n{program.replace('+', '-')}```")).reason == "a test fails"


@needs_sandbox
def test_a_program_replaces_names_of_python_only_if_the_solution_does(tmp_path):
    assertion, own = ["assert sum(1, 2) == 4"], "def sum(a, b):\n    return a + b + 1"
    (example,) = (task := task_of(tmp_path, test=assertion, code=own)).examples()
    assert task.grade(example, Reply(f"```python\n{own}\n```")).score == 1
    (example,) = (task := task_of(tmp_path, test=assertion)).examples()
    assert task.grade(example, Reply(f"```python\n{own}\n```")).score == 0


def test_tests_that_are_no_python_are_named(tmp_path):
    with pytest.raises(InputError, match=r"line 1: test: is not Python"):
        task_of(tmp_path, test=["assert ("]).examples()


@needs_shared
@needs_sandbox
@pytest.mark.slow
def test_the_reference_solutions_pass():
    task = Mbpp(path=str(SHARED / "mbpp_test.jsonl"))
    rows = [json.loads(line) for line in (SHARED / "mbpp_test.jsonl").read_text().splitlines()]
    wrong = {}
    for example, row in zip(task.examples(), rows, strict=True):
        grade = task.grade(example, Reply(f"```python\n{row['code']}\n```"))
        wrong |= {} if grade.score == 1 else {example.id: grade.reason}
    # the solution of 123 needs seconds for one of its tests
    assert len(rows) == 300 and wrong.keys() <= {"123"}, wrong
