"""Hallucinated calls: calls of tools, parameters and values that were never declared."""

from collections.abc import Mapping, Sequence
from typing import Any

from maverick_jax.text.chat import Reply, Tool, ToolCall

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
MAX_DEPTH = 32


def invented(reply: Reply, tools: Sequence[Tool]) -> list[str]:
    """What is wrong with each hallucinated call of a reply, in order; empty if all calls are of declared tools with
    declared parameters, all required ones, and values of the declared types."""
    declared = {tool.name: tool.parameters for tool in tools}
    return [problem for call in reply.calls if (problem := _problem(call, declared))]


def _problem(call: ToolCall, declared: Mapping[str, Mapping[str, Any]]) -> str:
    if call.name not in declared:
        return f"{call.name[:80]} is no tool"
    return schema_problem(dict(call.arguments), {"type": "object", **declared[call.name]}, call.name, closed=True)


def schema_problem(value: Any, schema: Mapping[str, Any], where: str, *, closed: bool = False, depth: int = 0) -> str:
    """Why a value is not what a JSON schema says, by its types, required and undeclared properties, items and
    enumerations; empty if it is. Other keywords are not checked. `closed`: properties must be declared, whatever
    `additionalProperties` says."""
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{where}: {value!r:.80} is not of type {' or '.join(map(str, kinds))}"
    if isinstance(schema.get("enum"), list) and not any(type(value) is type(v) and value == v for v in schema["enum"]):
        return f"{where}: {value!r:.80} is not among the values of its enum"
    if depth >= MAX_DEPTH:
        return ""
    if isinstance(value, list) and isinstance(items := schema.get("items"), Mapping):
        found = (schema_problem(item, items, f"{where}[{i}]", depth=depth + 1) for i, item in enumerate(value))
        return next(filter(None, found), "")
    return _object_problem(value, schema, where, closed, depth) if isinstance(value, dict) else ""


def _object_problem(value: dict[str, Any], schema: Mapping[str, Any], where: str, closed: bool, depth: int) -> str:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        if name not in value:
            return f"{where}: {name} is missing"
    for name, item in value.items():
        if name in properties:
            inner = properties[name] if isinstance(properties[name], Mapping) else {}
            if problem := schema_problem(item, inner, f"{where}.{name[:80]}", depth=depth + 1):
                return problem
        elif closed or schema.get("additionalProperties") is False:
            return f"{where}: {name[:80]} is no parameter"
    return ""


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, float) and kind == "integer":
        return value.is_integer()
    return not isinstance(kind, str) or kind not in TYPES or isinstance(value, TYPES[kind])
