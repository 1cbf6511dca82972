"""GSM8K: prompts, both rules, and the reference answers of the real data."""

import json

import pytest

from data.tasks.gsm8k import Gsm8k
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Reply, Role
from tests.helpers.shared_data import SHARED, needs_shared


@pytest.fixture
def path(tmp_path):
    rows = [{"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}, {"question": "q", "answer": "#### 1,000"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "a.jsonl")


def test_prompts_with_worked_examples(path):
    first, second = Gsm8k(path=path, shots_path=path, shots=1, chat=False).examples()
    assert first.prompt == "Question: 1 + 1?\nAnswer: It is 2.\n#### 2\n\nQuestion: 1 + 1?\nAnswer:"
    assert (first.references, second.references) == (("2",), ("1,000",))
    chat = Gsm8k(path=path, shots_path=path, shots=2).examples()[0].prompt
    assert [message.role for message in chat.messages] == [Role.USER, Role.ASSISTANT] * 2 + [Role.USER]


@pytest.mark.parametrize(
    ("reply", "score", "strict"),
    [
        ("so 1000\n#### 1000", 1, 1), ("It is $1,000.", 1, 0), ("#### 1,000 \nBye 3", 0, 1),
        ("#### 2\n#### 1000", 1, 0),
        ("no idea", 0, 0),
    ],
)  # fmt: skip
def test_the_last_number_counts_and_the_marked_one_is_a_part(path, reply, score, strict):
    task = Gsm8k(path=path)
    found = task.grade(task.examples()[1], Reply(reply))
    assert (found.score, found.parts["strict"], found.answered) == (score, strict, reply != "no idea")


def test_the_next_question_of_a_base_model_is_not_graded(path):
    task = Gsm8k(path=path, chat=False)
    assert task.grade(task.examples()[0], Reply(" It is 2.\n\nQuestion: 5 + 5?")).score == 1


def test_answers_without_a_number_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "2"}\n')
    with pytest.raises(InputError, match=r"a.jsonl: line 1: answer: has no number after ####"):
        Gsm8k(path=str(tmp_path / "a.jsonl")).examples()


@needs_shared
def test_all_reference_answers_are_right():
    path = SHARED / "gsm8k_test_other_300.jsonl"
    task = Gsm8k(path=str(path))
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    grades = [task.grade(e, Reply(answer)) for e, answer in zip(task.examples(), answers, strict=True)]
    assert len(grades) == 300 and all(grade.score == grade.parts["strict"] == 1 for grade in grades)
