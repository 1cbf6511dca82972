"""BFCL: right calls in every dialect, wrong calls of each kind, irrelevance, and rates."""

import json

import pytest

from data.graders.base import Grade
from data.graders.tool_calls import invented
from data.tasks.base import Graded
from data.tasks.bfcl import Bfcl, schema_of
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import (
    DIALECTS,
    CallError,
    Conversation,
    Message,
    Reply,
    Role,
    ToolCall,
    find_dialect,
    render,
)
from tests.helpers.shared_data import SHARED, needs_shared

BYTES = load_tokenizer("bytes")
QUESTION = {
    "id": "simple_0",
    "question": [[{"role": "user", "content": "Book two seats."}]],
    "function": [
        {
            "name": "book.seats",
            "description": "Books seats.",
            "parameters": {
                "type": "dict",
                "properties": {
                    "count": {"type": "integer"},
                    "price": {"type": "float"},
                    "place": {"type": "string"},
                    "window": {"type": "boolean"},
                    "rows": {"type": "array", "items": {"type": "integer"}},
                    "guest": {"type": "dict", "properties": {"name": {"type": "string"}}},
                },
                "required": ["count", "place"],
            },
        },
        {"name": "other", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}},
    ],
}
ALLOWED = {
    "count": [2], "price": [9.5, 10.0, ""], "place": ["New York, NY", "NYC"], "window": [True, ""],
    "rows": [[1, 2], ""], "guest": [{"name": ["Ann", "Anne"], "age": [7, ""]}, ""],
}  # fmt: skip
RIGHT = {"count": 2, "price": 10, "place": "new york NY", "window": True, "rows": [1, 2], "guest": {"name": "Anne"}}


def task_of(folder, questions, answers) -> Bfcl:
    write = lambda path, lines: path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "Q.json", questions)
    if answers is not None:
        (folder / "possible_answer").mkdir()
        write(folder / "possible_answer" / "Q.json", answers)
    return Bfcl(paths=(str(folder / "Q.json"),))


@pytest.fixture
def simple(tmp_path) -> Bfcl:
    return task_of(tmp_path, [QUESTION], [{"id": "simple_0", "ground_truth": [{"book.seats": ALLOWED}]}])


def test_right_calls_pass(simple):
    (example,) = simple.examples()
    for arguments in (RIGHT, {"count": 2, "place": "NYC"}, RIGHT | {"price": 9.5, "guest": {"name": "ann", "age": 7}}):
        assert simple.grade(example, Reply(calls=[ToolCall("book.seats", arguments)])).score == 1, arguments


without = lambda name: {key: value for key, value in RIGHT.items() if key != name}
WRONG = {
    "no call": [],
    "another tool": [("other", {})],
    "a tool that is not declared": [("book_seats", RIGHT)],
    "two calls": [("book.seats", RIGHT), ("book.seats", RIGHT)],
    "a required parameter is missing": [("book.seats", without("place"))],
    "an unknown parameter": [("book.seats", RIGHT | {"color": "red"})],
    "another value": [("book.seats", RIGHT | {"count": 3})],
    "a text for a number": [("book.seats", RIGHT | {"count": "2"})],
    "a truth value for a number": [("book.seats", RIGHT | {"count": True})],
    "a number for a truth value": [("book.seats", RIGHT | {"window": 1})],
    "a float for a whole number": [("book.seats", RIGHT | {"count": 2.5})],
    "a list in another order": [("book.seats", RIGHT | {"rows": [2, 1]})],
    "a list of another length": [("book.seats", RIGHT | {"rows": [1]})],
    "a list of texts": [("book.seats", RIGHT | {"rows": ["1", "2"]})],
    "another text": [("book.seats", RIGHT | {"place": "York"})],
    "an unknown key": [("book.seats", RIGHT | {"guest": {"name": "Ann", "size": 1}})],
    "a missing key": [("book.seats", RIGHT | {"guest": {"age": 7}})],
}


@pytest.mark.parametrize("kind", WRONG)
def test_each_kind_of_wrong_call_fails(simple, kind):
    (example,) = simple.examples()
    calls = [ToolCall(name, arguments) for name, arguments in WRONG[kind]]
    grade = simple.grade(example, Reply(calls=calls))
    assert grade.score == 0 and grade.reason and grade.answered == bool(calls)


def test_parallel_calls_match_in_any_order_once_each(tmp_path):
    wanted = [{"book.seats": {"count": [n], "place": ["a"]}} for n in (1, 2, 2)]
    task = task_of(tmp_path, [QUESTION], [{"id": "simple_0", "ground_truth": wanted}])
    (example,) = task.examples()
    reply = lambda *counts: Reply(calls=[ToolCall("book.seats", {"count": n, "place": "A"}) for n in counts])
    assert task.grade(example, reply(2, 1, 2)).score == 1
    assert task.grade(example, reply(1, 1, 2)).score == 0 and task.grade(example, reply(1, 2)).score == 0


def test_irrelevance_and_rates(tmp_path):
    task = task_of(tmp_path, [QUESTION | {"id": str(i)} for i in range(4)], None)
    examples = task.examples()
    call = Reply(calls=[ToolCall("book.seats", {"count": "2"})])
    replies = [Reply("No tool fits."), call, Reply(calls=[ToolCall("other", {})]), Reply("Which?")]
    grades = [task.grade(e, r) for e, r in zip(examples, replies, strict=True)]
    assert [grade.score for grade in grades] == [1, 0, 0, 1]
    found = task.figures([Graded(*one) for one in zip(examples, replies, grades, strict=True)])
    assert found["over_call"][:2] == (0.5, 4) and found["hallucination"][:2] == (0.5, 2)
    assert "under_call" not in found


def test_calls_that_were_never_declared_are_hallucinations(simple):
    (example,) = simple.examples()
    tools = example.prompt.tools
    say = lambda name, **arguments: invented(Reply(calls=[ToolCall(name, arguments)]), tools)
    assert say("book.seats", count=2, place="a", price=3, rows=[1]) == []
    assert say("fly") == ["fly is no tool"]
    assert say("book.seats", count=2) == ["book.seats: place is missing"]
    assert say("book.seats", count=2, place="a", x=1) == ["book.seats: x is no parameter"]
    assert say("book.seats", count="2", place="a") == ["book.seats.count: '2' is not of type integer"]
    assert say("book.seats", count=2, place="a", rows=[1, "b"]) == ["book.seats.rows[1]: 'b' is not of type integer"]


def test_schemas_become_json_schemas(simple):
    found = schema_of(QUESTION["function"][0]["parameters"])
    assert found["type"] == "object" and found["properties"]["price"] == {"type": "number"}
    assert found["properties"]["guest"]["properties"] == {"name": {"type": "string"}}


def test_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"Q.json: line 1: id: 'simple_0' has no answer in .*possible_answer/Q.json"):
        task_of(tmp_path, [QUESTION], [{"id": "x", "ground_truth": []}]).examples()


# ---- the shared data -------------------------------------------------------------------------------------------------


def gold_arguments(parameters: dict, declared) -> dict:
    """Allowed arguments: the first value of each parameter that is declared, without those that are to be left out."""
    first = {
        name: next((v for v in values if v != ""), "" if "" in values else []) for name, values in parameters.items()
    }
    return {
        name: _gold(value) for name, value in first.items()
        if value != "" and (declared is None or name in declared or "" not in parameters[name])
    }  # fmt: skip


def _gold(value):
    if isinstance(value, list):
        return [_gold(item) for item in value]
    if isinstance(value, dict):
        return gold_arguments({key: v if isinstance(v, list) else [v] for key, v in value.items()}, None)
    return value


@needs_shared
@pytest.mark.parametrize("dialect", DIALECTS)
def test_all_gold_answers_of_the_shared_files_pass_once_written_and_parsed(dialect):
    task = Bfcl(paths=tuple(map(str, sorted((SHARED / "bfcl").glob("BFCL*.json")))))
    before = len(render(Conversation((Message(Role.USER, "x"),)), BYTES, dialect, add_generation_prompt=True).ids)
    graded = []
    for example in task.examples():
        wanted, schemas = example.facts["wanted"], example.facts["schemas"]
        golds = [(n, gold_arguments(p, schemas[n]["properties"])) for one in wanted for n, p in one.items()]
        said = Message(Role.ASSISTANT, "" if golds else "No tool fits.", [ToolCall(n, a) for n, a in golds])
        ids = render(Conversation((Message(Role.USER, "x"), said)), BYTES, dialect).ids[before:].tolist()
        reply = find_dialect(dialect).parse_calls(ids, BYTES)
        grade = Grade(0.0, str(reply)) if isinstance(reply, CallError) else task.grade(example, reply)
        assert grade.score == 1, (example.id, grade.reason)
        graded.append(Graded(example, reply, grade))
    found = task.figures(graded)
    assert len(graded) > 700 and found["over_call"].n >= 100
    assert (found["over_call"].value, found["under_call"].value) == (0, 0)
