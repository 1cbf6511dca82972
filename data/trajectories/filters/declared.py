"""Whether a call is one that its tool's declaration allows.

Of JSON schema: `type`, `enum`, `required`, `properties`, `additionalProperties: false` and `items`; what else a schema
says is not asked. A tool that declares properties takes no others, unless it says so.
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


def misfit(call: ToolCall, tools: Mapping[str, Tool]) -> str | None:
    """What is wrong with `call`, by the name of its place, never its value; None: nothing."""
    if call.name not in tools:
        return f"{call.name[:80]!r} was not declared"
    schema = tools[call.name].parameters
    if isinstance(known := schema.get("properties"), Mapping) and known and not schema.get("additionalProperties"):
        schema = {**schema, "additionalProperties": False}
    found = _misfit(call.arguments, schema, "")
    return None if found is None else f"{call.name[:80]!r}: {found}"


def _misfit(value: Any, schema: Any, where: str) -> str | None:
    if not isinstance(schema, Mapping):
        return None
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if kinds and all(isinstance(k, str) and k in _IS for k in kinds) and not any(_IS[k](value) for k in kinds):
        return f"{where[:200] or 'arguments'}: expected {' or '.join(kinds)}"
    if isinstance(choices := schema.get("enum"), list) and value not in choices:
        return f"{where[:200]}: none of the {len(choices)} values it may have"
    if isinstance(value, Mapping):
        return _misfit_object(value, schema, where)
    if isinstance(value, list):
        found = (_misfit(item, schema.get("items"), f"{where}[{i}]") for i, item in enumerate(value))
        return next((reason for reason in found if reason), None)
    return None


def _misfit_object(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    dot = f"{where}." if where else ""
    for name in _names(schema.get("required")):
        if name not in value:
            return f"{dot}{name[:80]}: missing"
    for name, item in value.items():
        if name in properties:
            if reason := _misfit(item, properties[name], f"{dot}{name[:80]}"):
                return reason
        elif schema.get("additionalProperties") is False:
            return f"{dot}{name[:80]}: not declared"
    return None


def _names(found: Any) -> Sequence[str]:
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
