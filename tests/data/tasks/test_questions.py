"""Tasks of questions: files, the comparison of answers, and the shipped tasks."""

import json

import pytest

from data.graders.matching import exact, number_in, numeric
from data.tasks import TASKS, Task, TasksConfig, read_tasks
from data.tasks.questions import Questions
from data.tasks.toy_shop_orders import ToyShopOrders
from data.trajectories import toy_shop
from maverick_jax.errors import InputError
from maverick_jax.settings import shipped
from maverick_jax.settings.descriptions import descriptions
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Reply, Role, ToolCall

BYTES = load_tokenizer("bytes")


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_file_of_questions(tmp_path):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    path = write(tmp_path / "sums.jsonl", {"prompt": "1 + 1?", "answer": 2},
                 {"prompt": messages, "answer": ["4", "four"], "id": "b"})  # fmt: skip
    ((name, task),) = read_tasks(str(path)).items()
    assert name == "sums" and isinstance(task, Questions) and task.info == ("unknown", "unknown")
    first, second = task.examples()
    assert (first.id, first.references, second.id, second.references) == ("0", ("2",), "b", ("4", "four"))
    assert isinstance(first.prompt, Conversation) and isinstance(second.prompt, Conversation)
    assert [m.text for m in first.prompt.messages] == ["1 + 1?"]
    assert [m.role for m in second.prompt.messages] == [Role.SYSTEM, Role.USER]
    assert task.grade(second, Reply(" four \n")).score == 1
    assert task.grade(second, Reply("It is four"))[:2] == (0.0, "expected '4' or 'four', got 'It is four'")


def test_the_first_line_of_a_continuation_is_the_answer(tmp_path):
    path = write(tmp_path / "q.jsonl", {"prompt": "The capital of France is", "answer": "Paris"})
    task = Questions(path=str(path), chat=False)
    (example,) = task.examples()
    assert example.prompt == "The capital of France is"
    assert task.grade(example, Reply(" Paris\nand so on")).score == 1
    assert task.grade(example, Reply("Rome\nParis")).score == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x"}', "line 2: answer: is missing"),
        ('{"prompt": "x", "answer": null}', "line 2: answer: is missing"),
        ('{"promt": "x", "answer": "y"}', "line 2: 'promt': unknown field; did you mean prompt?"),
        ('{"prompt": " ", "answer": "y"}', "line 2: prompt: expected a text or a list of messages"),
        ('{"prompt": [{"role": "usr", "content": "x"}], "answer": "y"}', "line 2: message 0: role: 'usr'"),
        ('{"prompt": "x", "answer": []}', "line 2: answer: empty list"),
        ('{"prompt": "x", "answer": true}', "line 2: answer: expected a text or a number, got True"),
        ('{"prompt": "x", "answer": "none"}', "line 2: answer: 'none' contains no number; `match: numeric`"),
        ('{"prompt": "x", "answer": "1", "id": "0"}', "line 2: id: '0' is already the id of an earlier line"),
        ('{"prompt": "x", "answer": "1", "id": [0]}', "line 2: id: expected a text or a whole number"),
        ("[1]", "line 2: expected an object with `prompt` and `answer`, got list"),
        ('{"prompt": "x", "answer": NaN}', "line 2: not JSON"),
        ('{"prompt": "x"', "line 2: not JSON"),
    ],
)
def test_a_bad_line_raises_one_error_with_its_number(tmp_path, line, message):
    path = write(tmp_path / "q.jsonl", {"prompt": "x", "answer": 1})
    path.write_text(path.read_text() + line)
    with pytest.raises(InputError) as error:
        Questions(path=str(path), match="numeric").examples()
    assert message in str(error.value) and str(error.value).startswith(str(path))


def test_missing_files_and_unknown_tasks_are_refused(tmp_path):
    write(tmp_path / "sums.jsonl", {"prompt": "x", "answer": 1})
    for given, message in {
        str(tmp_path / "sum.jsonl"): "no such file; did you mean sums.jsonl?",
        "toy_shp": "no shipped task is named 'toy_shp'; did you mean toy_shop?",
    }.items():
        with pytest.raises(InputError) as error:
            [task.examples() for task in read_tasks(given).values()]
        assert message in str(error.value)
    bad = tmp_path / "tasks.yaml"
    bad.write_text("tasks:\n  a: {kind: questons, path: x}\n  b: {kind: toy_shop_orders, cont: 3}\n"
                   "  c: {kind: questions, path: x, count: 3}\n")  # fmt: skip
    with pytest.raises(InputError) as error:
        read_tasks(str(bad))
    assert [line.partition("tasks.yaml:")[2] for line in str(error.value).splitlines()] == [
        f"2: tasks.a.kind: 'questons' is not one of {', '.join(TASKS.members)}; did you mean questions?",
        "3: tasks.b.cont: unknown key; did you mean tasks.b.count?",
        "4: tasks.c.count: a key of kind: toy_shop_orders or kind: key_values or kind: needle or kind: "
        "retrieval; this one is of kind: "
        "questions",
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [("so it is 1,000.", "1000.0", True), ("7 then 8", "8", True), ("-3", "3", False), ("none", "3", False),
     (".5", "0.50", True), ("1e3", "3", True), ("12", "2", False), ("", "0", False)],
)  # fmt: skip
def test_numeric_compares_the_last_number(answer, reference, equal):
    grade = numeric(answer, [reference])
    assert (grade.score == 1) == equal == (not grade.reason)


def test_numbers_and_texts():
    assert number_in("3 apples") == 3 and number_in("no") is None
    assert exact(" a  b\n", ["x", "a b"]).score == 1 and exact("A b", ["a b"]).score == 0


@pytest.mark.parametrize("name", shipped.task_names())
def test_shipped_tasks_have_examples_and_grade_their_references(name):
    for task in read_tasks(name).values():
        examples = task.examples_for(BYTES)
        assert examples and len({example.id for example in examples}) == len(examples)
        assert (
            examples == task.examples_for(BYTES) and "license" in task.info._fields and task.info.license != "unknown"
        )
        for example in examples[:5]:
            assert task.grade(example, Reply(example.references[0]))[:2] == (1.0, "")
            assert task.grade(example, Reply("")).score == 0


def test_toy_shop_references_have_the_form_of_its_trajectories_answers():
    task = ToyShopOrders(count=50)
    answers = [s.message.text for t in toy_shop.generate(60) if t.provenance.task == "ask" for s in t.steps]
    form = lambda text: "sent" in text and text.partition(" ")[0].isdigit()
    assert [text for text in answers if form(text)]
    assert all(form(example.references[0]) for example in task.examples())
    (called,) = [task.grade(task.examples()[0], Reply("", [ToolCall("find_order", {"order": "A1"})]))]
    assert called[:2] == (0.0, "called find_order instead of answering")
    assert ToyShopOrders(count=50, seed=1).examples() != task.examples()


def test_every_field_of_a_task_is_described():
    for section in (TasksConfig, Task, *TASKS.members.values()):
        assert set(section.model_fields) <= set(descriptions(section))
