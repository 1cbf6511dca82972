"""BFCL: questions with tools, and the calls that answer them; or none, where no tool fits."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from data.graders.base import Grade
from data.graders.bfcl import Answers, grade_calls, grade_irrelevance
from data.graders.figures import Figure, figure
from data.graders.tool_calls import invented
from data.tasks.base import Example, Graded, Task, TaskInfo
from data.tasks.reading import Row, existing, json_rows
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Conversation, Reply, Tool, from_openai

SCHEMA_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""Types of the data's own, and what JSON schemas call them."""


class Bfcl(Task):
    """`kind: bfcl`: function calls of one turn, by the AST rule."""

    kind: Literal["bfcl"] = "bfcl"
    """The Berkeley Function-Calling Leaderboard's questions of one turn."""
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files of JSON lines with `id`, `question` and `function`. Answers are in the file of the same name in the folder
    `possible_answer` beside it. Without such a file, no tool fits its questions (the irrelevance files)."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Maximum number of tokens in an answer."""

    @property
    def info(self) -> TaskInfo:
        return TaskInfo("BFCL v4", "Apache-2.0")

    def examples(self) -> list[Example]:
        return [example for path in self.paths for example in _examples(existing(path))]

    def grade(self, example: Example, reply: Reply) -> Grade:
        wanted = example.facts["wanted"]
        if not wanted:
            return grade_irrelevance(reply)
        return grade_calls(reply, wanted, example.facts["schemas"])

    def figures(self, graded: Sequence[Graded]) -> dict[str, Figure]:
        """The score of each file; `over_call`: the share of questions that no tool fits and that are answered with a
        call; `under_call`: of the others, without one; `hallucination`: of replies with calls, those with a call of an
        undeclared tool, parameter or value. A malformed call is none."""
        found: dict[str, list[float]] = {}
        for example, reply, grade in graded:
            found.setdefault(f"file {example.facts['file']}", []).append(grade.score)
            calls = isinstance(reply, Reply) and bool(reply.calls)
            rate, value = ("under_call", not calls) if example.facts["wanted"] else ("over_call", calls)
            found.setdefault(rate, []).append(float(value))
            if isinstance(reply, Reply) and reply.calls:
                assert isinstance(example.prompt, Conversation)
                found.setdefault("hallucination", []).append(float(bool(invented(reply, example.prompt.tools))))
        return {name: figure(values) for name, values in found.items()}


def _examples(path: pathlib.Path) -> list[Example]:
    beside = path.parent / "possible_answer" / path.name
    answers = {row.get("id", str): row for row in json_rows(beside)} if beside.is_file() else None
    found = []
    for row in json_rows(path):
        name = row.get("id", str)
        if answers is not None and name not in answers:
            raise row.refuse("id", f"{name[:80]!r} has no answer in {beside}")
        functions = [row.of(function, dict, "function") for function in row.get("function", list)]
        schemas = {function.get("name", ""): function.get("parameters") or {} for function in functions}
        wanted = _wanted(answers[name], schemas) if answers is not None else []
        facts = {"wanted": wanted, "schemas": schemas, "file": path.stem}
        found.append(Example(name, _conversation(row, functions), (), facts=facts))
    return found


def _conversation(row: Row, functions: Sequence[dict[str, Any]]) -> Conversation:
    turns = row.get("question", list)
    if len(turns) != 1 or not isinstance(turns[0], list):
        raise row.refuse("question", f"{len(turns)} turns; expected one, a list of messages")
    try:
        messages = from_openai(turns[0]).messages
        tools = [
            Tool(f.get("name", ""), f.get("description", ""), schema_of(f.get("parameters") or {})) for f in functions
        ]
        return Conversation(messages, tools)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from None


def _tool(function: dict[str, Any]) -> Tool:
    return Tool(function.get("name", ""), function.get("description", ""), schema_of(function.get("parameters") or {}))


def schema_of(value: Any) -> Any:
    """A JSON schema of the data's own form."""
    if isinstance(value, list):
        return [schema_of(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: inner if key in ("default", "enum", "example") else schema_of(inner) for key, inner in value.items()}
    if isinstance(kind := value.get("type"), str):
        found["type"] = SCHEMA_TYPES.get(kind, kind)
    return found


def _wanted(row: Row, schemas: Mapping[str, Any]) -> list[Answers]:
    wanted = row.get("ground_truth", list)
    for call in wanted:
        if not isinstance(call, dict) or len(call) != 1:
            raise row.refuse("ground_truth", "expected objects with one tool each")
        ((name, parameters),) = call.items()
        if name not in schemas:
            raise row.refuse("ground_truth", f"{name[:80]!r} is not among the question's tools")
        if not isinstance(parameters, dict) or not all(isinstance(values, list) for values in parameters.values()):
            raise row.refuse("ground_truth", f"{name[:80]}: expected a list of allowed values per parameter")
    return wanted
