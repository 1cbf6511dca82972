"""Check calls against the declarations of their tools.

These parts of JSON schema are checked: `type`, `enum`, `required`, `properties`, `additionalProperties: false` and
`items`; others are ignored. A tool that declares properties accepts no others, unless `additionalProperties` is set.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from maverick_jax.text.chat import Tool, ToolCall

_IS = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == int(v),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "object": lambda v: isinstance(v, Mapping),
    "array": lambda v: isinstance(v, list),
}


def violation(call: ToolCall, tools: Mapping[str, Tool]) -> str | None:
    """Why `call` does not match its declaration, naming the argument but never its value; None if it matches."""
    if call.name not in tools:
        return f"{call.name[:80]!r} is not declared"
    schema = tools[call.name].parameters
    if isinstance(known := schema.get("properties"), Mapping) and known and not schema.get("additionalProperties"):
        schema = {**schema, "additionalProperties": False}
    found = _violation(call.arguments, schema, "")
    return None if found is None else f"{call.name[:80]!r}: {found}"


def _violation(value: Any, schema: Any, where: str) -> str | None:
    if not isinstance(schema, Mapping):
        return None
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if kinds and all(isinstance(k, str) and k in _IS for k in kinds) and not any(_IS[k](value) for k in kinds):
        return f"{where[:200] or 'arguments'}: expected {' or '.join(kinds)}"
    if isinstance(choices := schema.get("enum"), list) and value not in choices:
        return f"{where[:200]}: not one of the {len(choices)} allowed values"
    if isinstance(value, Mapping):
        return _violation_object(value, schema, where)
    if isinstance(value, list):
        found = (_violation(item, schema.get("items"), f"{where}[{i}]") for i, item in enumerate(value))
        return next((reason for reason in found if reason), None)
    return None


def _violation_object(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    dot = f"{where}." if where else ""
    for name in _names(schema.get("required")):
        if name not in value:
            return f"{dot}{name[:80]}: missing"
    for name, item in value.items():
        if name in properties:
            if reason := _violation(item, properties[name], f"{dot}{name[:80]}"):
                return reason
        elif schema.get("additionalProperties") is False:
            return f"{dot}{name[:80]}: not declared"
    return None


def _names(found: Any) -> Sequence[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
