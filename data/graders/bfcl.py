"""Calls against allowed answers, by the rule of the Berkeley Function-Calling Leaderboard's AST check. Calls come
parsed; nothing of a reply is evaluated."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.graders.base import Grade, binary
from maverick_jax.text.chat import Reply, ToolCall

Answers = Mapping[str, Mapping[str, Sequence[Any]]]
"""Name of the tool -> parameter -> allowed values; "" among them: the parameter may be left out; without any: the empty
list is."""
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float, int),
    "number": (float, int),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "object": (dict,),
    "any": (str,),
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
LEFT_OUT = ""


def grade_calls(reply: Reply, wanted: Sequence[Answers], schemas: Mapping[str, Mapping[str, Any]]) -> Grade:
    """Score 1 if the reply makes exactly the wanted calls, in any order. `schemas`: the parameters of each declared
    tool, as the data has them."""
    if not reply.calls:
        return Grade(0.0, "no call", answered=False)
    if len(reply.calls) != len(wanted):
        return Grade(0.0, f"{len(reply.calls)} calls; expected {len(wanted)}")
    left = list(wanted)
    for call in reply.calls:
        problems = [call_problem(call, answers, schemas) for answers in left]
        if "" not in problems:
            return Grade(0.0, problems[0])
        left.pop(problems.index(""))
    return Grade(1.0, "")


def grade_irrelevance(reply: Reply) -> Grade:
    """Score 1 if the reply makes no call."""
    return binary(not reply.calls, f"calls {reply.calls[0].name[:80]}, and no tool fits" if reply.calls else "")


def call_problem(call: ToolCall, answers: Answers, schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a call is not the one that `answers` (of one tool) describes; empty if it is."""
    ((name, allowed),) = answers.items()
    if call.name != name:
        return f"calls {call.name[:80]}; expected {name}"
    schema = schemas[name]
    declared = schema.get("properties", {})
    for parameter in schema.get("required", ()):
        if parameter not in call.arguments:
            return f"{name}: {parameter} is missing"
    for parameter, value in call.arguments.items():
        if parameter not in declared or parameter not in allowed:
            return f"{name}: {parameter[:80]} is no parameter"
        if problem := _value_problem(value, allowed[parameter], declared[parameter]):
            return f"{name}: {parameter}: {problem}"
    for parameter, values in allowed.items():
        if parameter not in call.arguments and LEFT_OUT not in values:
            return f"{name}: {parameter} is missing"
    return ""


def _value_problem(value: Any, allowed: Sequence[Any], declared: Mapping[str, Any]) -> str:
    kind, allowed = declared.get("type", "any"), allowed or [[]]
    if not _has_type(value, kind, allowed, declared.get("items")):
        return f"{value!r:.80} is not of type {kind}"
    if any(_same(value, one) for one in allowed if not _is_left_out(one)):
        return ""
    return f"{value!r:.80} is not among the allowed values"


def _has_type(value: Any, kind: str, allowed: Sequence[Any], items: Mapping[str, Any] | None) -> bool:
    """Whether a value has the declared type, or that of an allowed value: some data allow what they do not declare."""
    others = [one for one in allowed if not _is_left_out(one)]
    if isinstance(value, bool) and bool not in TYPES.get(kind, ()):
        return any(isinstance(one, bool) for one in others)
    if isinstance(value, TYPES.get(kind, ())):
        nested = (items or {}).get("type") if isinstance(value, list) else None
        lists: list[list[Any]] = [one for one in others if isinstance(one, list)] or [[]]
        listed = value if isinstance(value, list) else []
        fits = lambda one: all(_has_type(item, nested or "any", _scalars(one), None) for item in listed)
        return nested is None or any(map(fits, lists))
    return any(type(value) is type(one) for one in others)


def _scalars(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if not isinstance(value, list | dict)]


def _is_left_out(one: Any) -> bool:
    return isinstance(one, str) and one == LEFT_OUT


def _same(value: Any, one: Any) -> bool:
    """Whether a value equals an allowed one: texts without case and some marks, numbers by value, lists in order, and
    the values of an object's keys among those that are allowed for each."""
    if isinstance(value, bool) or isinstance(one, bool):
        return value is one
    if isinstance(value, str) and isinstance(one, str):
        return plain(value) == plain(one)
    if isinstance(value, int | float) and isinstance(one, int | float):
        return value == one
    if isinstance(value, list) and isinstance(one, list):
        return len(value) == len(one) and all(_same(a, b) for a, b in zip(value, one, strict=True))
    if isinstance(value, dict) and isinstance(one, dict):
        return _same_object(value, one)
    return value is None and one is None


def _same_object(value: dict[str, Any], one: dict[str, Any]) -> bool:
    choices = {key: allowed if isinstance(allowed, list) else [allowed] for key, allowed in one.items()}
    if any(key not in choices or not any(_same(item, a) for a in choices[key]) for key, item in value.items()):
        return False
    return all(key in value or any(_is_left_out(a) for a in allowed) for key, allowed in choices.items())


def plain(text: str) -> str:
    """A text as it is compared: lower case, without spaces and `,./-_*^`, with one kind of quotes."""
    return _IGNORED.sub("", text).lower().replace("'", '"')
