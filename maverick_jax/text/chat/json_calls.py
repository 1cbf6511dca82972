"""Write and parse calls as a sequence of JSON objects."""

import re
from collections.abc import Iterator, Mapping, Sequence

from maverick_jax.errors import InputError
from maverick_jax.text.chat import values
from maverick_jax.text.chat.conversation import MAX_CALLS, ToolCall
from maverick_jax.text.chat.open_name import OpenName
from maverick_jax.text.chat.spans import Kind, Segment, Text

BEGINS_CALL = re.compile(r'\s*\{\s*"(?:type|name|parameters)"\s*:')
"""An answer that begins like this is parsed as calls."""
_BEGINNINGS = "|".join(rf'"{key[:n]}' for key in ("type", "name", "parameters") for n in range(1, len(key)))
MAY_BEGIN_CALL = re.compile(rf'\s*+(?:\{{\s*+(?:{_BEGINNINGS}|"(?:type|name|parameters)(?:"\s*+)?|")?)?')
"""Matches every beginning of what BEGINS_CALL matches."""
MAX_CHARACTERS = 2 * values.MAX_CHARACTERS
_BETWEEN = re.compile(r"[\s,;]*+")
_PART = re.compile(
    r""""(?P<text>(?:[^"\\]|\\.)*+)(?P<ended>"?)|(?P<open>[{\[])|(?P<close>[}\]])|(?P<mark>[:,])|[^"{}\[\]:,]++""",
    re.DOTALL,
)
"""The parts of JSON, of which the last string may be unfinished."""


def write(calls: Sequence[ToolCall], fixed: Mapping[str, str]) -> Iterator[Segment]:
    """The calls as segments; every object begins with the keys of `fixed`."""
    begin = "{" + "".join(f"{values.write(key)}: {values.write(text)}, " for key, text in fixed.items())
    for i, call in enumerate(calls):
        yield Text(Kind.CALL_SYNTAX, f'{begin}"name": "', i)
        yield Text(Kind.CALL_NAME, values.write(call.name)[1:-1], i)
        yield Text(Kind.CALL_SYNTAX, '", "parameters": ', i)
        yield Text(Kind.CALL_ARGUMENTS, values.write(call.arguments), i)
        yield Text(Kind.CALL_SYNTAX, "}", i)


def open_name(text: str) -> OpenName | None:
    """The place of a name that the beginning `text` of calls ends with; None if it ends elsewhere."""
    depth, key, is_value, at_name = 0, "", False, False
    for part in _PART.finditer(text):
        if part["text"] is not None and not part["ended"]:
            return OpenName(part["text"], closes='"') if at_name else None
        depth += (part["open"] is not None) - (part["close"] is not None)
        if part["open"] or part["close"] or part["mark"]:
            is_value = depth == 1 and part["mark"] == ":"
        elif part["text"] is not None and depth == 1 and not is_value:
            key = part["text"]
        elif not part[0].isspace():
            is_value = False
        at_name = is_value and key == "name"
    return OpenName("", opens=('"', ' "'), closes='"') if at_name else None


def read(text: str) -> list[ToolCall]:
    """Parse one or several objects, separated by white space, commas, semicolons or nothing.
    Raises InputError naming the first malformed call and the reason."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"longer than {MAX_CHARACTERS:,} characters")
    calls: list[ToolCall] = []
    position = 0
    while not calls or position < len(text):
        if len(calls) == MAX_CALLS:
            raise InputError(f"more than {MAX_CALLS} calls")
        where = f"call {len(calls)}"
        value, position = values.read_prefix(text, position, where)
        calls.append(_call(value, where))
        position = _between(text, position)
    return calls


def _between(text: str, position: int) -> int:
    found = _BETWEEN.match(text, position)
    return found.end() if found else position


def _call(value: object, where: str) -> ToolCall:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object with `name` and `parameters`, got {type(value).__name__}")
    missing = [key for key in ("name", "parameters") if key not in value]
    unknown = [key for key in value if key not in ("type", "name", "parameters")]
    if missing or unknown:
        problem = f"{missing[0]!r} is missing" if missing else f"unknown key {unknown[0][:80]!r}"
        raise InputError(f"{where}: {problem}; expected an object with `name` and `parameters`")
    if value.get("type", "function") != "function":
        raise InputError(f"{where}: type: {value['type']!r:.80}; expected 'function'")
    if not isinstance(value["parameters"], dict):
        raise InputError(f"{where}: parameters: expected an object, got {type(value['parameters']).__name__}")
    return ToolCall(value["name"], value["parameters"])
