"""Write and parse calls as a Python list, `[name(key="text", other=1), second()]`. Nothing is evaluated.

Not every name or key is valid Python. A name other than (dotted) ASCII identifiers is quoted,
`["create-issue"(id=1)]`; arguments with such a key are written as a dictionary, `[f(**{"a-b": 1})]`.
"""

import ast
import keyword
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.text.chat import values
from maverick_jax.text.chat.conversation import MAX_CALLS, ToolCall
from maverick_jax.text.chat.open_name import OpenName
from maverick_jax.text.chat.spans import Kind, Segment, Text

BEGINS_CALL = re.compile(r"""\s*\[\s*(?:[^\W\d][\w.]*+|"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+')\s*\(""")
"""An answer that begins like this is parsed as calls."""
MAY_BEGIN_CALL = re.compile(
    r"""\s*+(?:\[\s*+(?:[^\W\d][\w.]*+\s*+|"(?:[^"\\\n]|\\.)*+(?:\\|"\s*+)?|'(?:[^'\\\n]|\\.)*+(?:\\|'\s*+)?)?)?"""
)
"""Matches every beginning of what BEGINS_CALL matches."""
MAX_CHARACTERS = 2 * values.MAX_CHARACTERS
MAX_TOKENS = 6 * values.MAX_ITEMS
"""Most tokens of a list of calls; large enough for one call with any arguments that a ToolCall allows."""
BRACKETS = 3
"""Brackets around an argument's value: of the list, the call and a dictionary of arguments."""
_PARSING = threading.Lock()
"""Held while Python parses: before 3.12 two threads that parse at once confuse its count of depth (SystemError)."""
_NAME_AT_END = re.compile(r"(?P<name>[^\W\d][\w.]*+)")
SPELLINGS = {"true": True, "false": False, "null": None, "none": None}
"""Names that stand for values: models often write those of JSON."""
NOT_NAMES = frozenset([*keyword.kwlist, "__debug__"])
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    r"""\s++|(?P<open>[\[({])|(?P<close>[\])}])|[,:=]|(?P<sign>[-+](?![-+\s]))|\*\*(?=\{)
    |\"{3}(?:[^"\\]|\\.|"(?!""))*+\"{3}|'{3}(?:[^'\\]|\\.|'(?!''))*+'{3}
    |"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+'
    |(?:\d[\w.]*+|\.\d\w*+)(?:(?<=[eE])[-+]\d++)?|[^\W\d]\w*+(?:\.[^\W\d]\w*+){0,256}+""",
    re.VERBOSE | re.DOTALL,
)
"""The tokens of a list of calls. A text is checked against them, and for its depth, before Python parses it."""


def write(calls: Sequence[ToolCall]) -> Iterator[Segment]:
    """The calls as segments."""
    for i, call in enumerate(calls):
        name, quote = (call.name, "") if is_dotted(call.name) else (values.write(call.name)[1:-1], '"')
        yield Text(Kind.CALL_SYNTAX, (", " if i else "[") + quote, i)
        yield Text(Kind.CALL_NAME, name, i)
        yield Text(Kind.CALL_SYNTAX, f"{quote}(", i)
        yield Text(Kind.CALL_ARGUMENTS, _arguments(call), i)
        yield Text(Kind.CALL_SYNTAX, ")", i)
    yield Text(Kind.CALL_SYNTAX, "]")


def is_dotted(name: str) -> bool:
    """Whether a name is written without quotes."""
    return all(map(is_identifier, name.split(".")))


def is_identifier(word: str) -> bool:
    """Whether a key can be written before `=`."""
    return _IDENTIFIER.fullmatch(word) is not None and word not in NOT_NAMES


def _arguments(call: ToolCall) -> str:
    if all(map(is_identifier, call.arguments)):
        return ", ".join(f"{key}={_literal(value)}" for key, value in call.arguments.items())
    return f"**{_literal(call.arguments)}"


def _literal(value: Any) -> str:
    """A Python literal. Strings are escaped as in JSON, which Python reads the same way."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value)
    return values.write(value)


def open_name(text: str) -> OpenName | None:
    """The place of a name that the beginning `text` of a list of calls ends with; None if it ends elsewhere. Names in
    quotes are not followed."""
    position = depth = 0
    expected = False
    while position < len(text):
        if expected and (rest := _NAME_AT_END.fullmatch(text, position)):
            return OpenName(rest["name"], closes="(", must=bool(rest["name"]))
        found = _TOKEN.match(text, position)
        if found is None:
            return None
        depth += (found["open"] is not None) - (found["close"] is not None)
        expected = depth == 1 and (found[0] in ("[", ",") or (expected and found[0].isspace()))
        position = found.end()
    return OpenName("", opens=("", " "), closes="(", must=False) if expected else None


def read(text: str) -> list[ToolCall]:
    """Parse a list of calls with literal arguments, or several lists, one after the other. Raises InputError naming the
    first part that is not one."""
    elements = [element for part in _scan(text) for element in _list(part)]
    if len(elements) > MAX_CALLS:
        raise InputError(f"{len(elements):,} calls; expected at most {MAX_CALLS}")
    return [_call(element) for element in elements]


def read_value(text: str) -> Any:
    """Parse one literal. Raises InputError naming the first part that is not one."""
    _scan(text)
    return _value(_parsed(text, "a literal"))


def _list(text: str) -> list[ast.expr]:
    tree = _parsed(text, "a list of calls")
    if not isinstance(tree, ast.List) or not tree.elts:
        raise InputError("expected a list of calls, [name(key=value), ...]")
    return tree.elts


def _parsed(text: str, what: str) -> ast.expr:
    try:
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes in strings warn; they are kept unchanged
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"not {what}: {getattr(error, 'msg', error)}") from None
    except (RecursionError, MemoryError):
        raise InputError(f"not {what}: too complex") from None


def _scan(text: str) -> list[str]:
    """The lists in a text that is lists with white space or commas between them, else the whole text. Raises
    InputError, without parsing, for text with other tokens than literals, names and brackets, or that is nested too
    deeply."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"longer than {MAX_CHARACTERS:,} characters")
    position = depth = tokens = begin = 0
    parts: list[str] = []
    only_lists = True
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise InputError(f"unexpected {text[position : position + 20]!r} at character {position}")
        if depth == 0:
            begin = position
            only_lists &= found[0] in ("[", ",") or found[0].isspace()
        depth += (found["open"] is not None) - (found["close"] is not None)
        if depth == 0 and found["close"]:
            parts.append(text[begin : found.end()])
        tokens += not found[0].isspace()
        if depth > values.MAX_DEPTH + BRACKETS or tokens > MAX_TOKENS:
            raise InputError(f"nested deeper than {values.MAX_DEPTH} levels, or more than {values.MAX_ITEMS:,} items")
        position = found.end()
    return parts if only_lists and depth == 0 and parts else [text]


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise InputError(f"expected a call, name(key=value), got {_shown(node)}")
    name = _name(node.func)
    if node.args:
        raise InputError(f"{name[:80]!r}: argument {_shown(node.args[0])} has no name; expected key=value")
    arguments: dict[str, Any] = {}
    for word in node.keywords:
        given = {word.arg: _value(word.value)} if word.arg is not None else _value(word.value)
        if not isinstance(given, dict):
            raise InputError(f"{name[:80]!r}: ** must be followed by a dictionary")
        for key, value in given.items():
            if key in arguments:
                raise InputError(f"{name[:80]!r}: argument {key[:80]!r} is given twice")
            arguments[key] = value
    return ToolCall(name, arguments)


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise InputError(f"expected the name of a tool, got {_shown(node)}")


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in SPELLINGS:
        return SPELLINGS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Dict):
        return _dictionary(node)
    raise InputError(f"{_shown(node)} is not a literal")


def _dictionary(node: ast.Dict) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in zip(node.keys, node.values, strict=True):
        key = _value(key_node) if key_node is not None else None
        if not isinstance(key, str):
            raise InputError("a key of a dictionary is not a string")
        if key in found:
            raise InputError(f"key {key[:80]!r} is given twice")
        found[key] = _value(value_node)
    return found


def _shown(node: ast.expr) -> str:
    kind = {ast.Name: "name", ast.JoinedStr: "f-string"}.get(type(node), type(node).__name__.lower())
    return f"{kind} {node.id!r:.80}" if isinstance(node, ast.Name) else f"a {kind}"
