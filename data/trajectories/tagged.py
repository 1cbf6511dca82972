"""Calls, results and tools that a text holds between tags, as in Hermes' `<tool_call>{"name": ...}</tool_call>`.

Models write calls in the format they were trained on, and many data sets keep them so. Learned as text they would
teach the tags, in place of the calls of the dialect. A text that ends in calls becomes calls; any other text with such
a tag is refused.
"""

import re
from collections.abc import Callable
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.text.chat import ToolCall, json_calls, pythonic, values
from maverick_jax.text.chat.openai import arguments_of

_ENDS = re.compile(r"\s*(?:<\|(?:eom_id|eot_id|eot|eom|im_end|endoftext)\|>|</s>)?\s*\Z")
_FUNCTION = re.compile(r"\s*<function=([^<>\s]{1,512})>\s*(?=\{)")
_SPACE = re.compile(r"\s*")
_RESULT = ("<tool_response>", "</tool_response>")
_TOOLS = ("<tools>", "</tools>")
_PYTHON = re.compile(r"\{\s*'")
"""Begins a Python dictionary, which stands for JSON in the first Hermes data."""
_BEFORE_MORE = re.compile(r"[\s,;]*")

_Reader = Callable[[str, int], tuple[list[ToolCall], int]]
"""Reads calls from the index of their first tag on; returns them and the index after the last."""


def take_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The text before the calls, and the calls; the whole text and no calls if it has no tag of a call.

    Raises InputError beginning with the tag for calls that cannot be read with certainty: in a format without types,
    with text after them, or malformed."""
    found = _OPENING.search(text)
    if found is None:
        return text, []
    tag = found[0].strip()
    try:
        calls, end = _READERS[found.lastgroup or "other"](text, found.start())
        if not _ENDS.match(text, end):
            raise InputError(f"more text after the calls, {text[end:].strip()[:40]!r}")
    except InputError as error:
        raise InputError(f"{tag[:80]}: calls as text, which would be learned as an answer: {error}. Write them as "
                         "calls (`tool_calls`, `function_call`)") from None  # fmt: skip
    return text[: found.start()].rstrip(), calls


def results(text: str, waiting: int) -> list[str]:
    """The results in a text, without the tags `<tool_response>` around them. `waiting`: number of calls without one.
    Raises InputError for another number of tagged results than that."""
    opening, closing = _RESULT
    blocks, at = [], _after_space(text, 0)
    while text.startswith(opening, at) and (end := text.find(closing, at)) >= 0:
        blocks.append(text[at + len(opening) : end].strip("\n"))
        at = _after_space(text, end + len(closing))
    if not blocks or at < len(text):
        return [text]
    if len(blocks) not in (1, waiting):
        raise InputError(f"<tool_response>: {len(blocks)} results for {waiting} calls")
    return blocks


def are_results(text: str) -> bool:
    """Whether a text is nothing but results between `<tool_response>` tags."""
    return text.lstrip().startswith(_RESULT[0]) and text.rstrip().endswith(_RESULT[1])


def declared_tools(text: str) -> list[Any]:
    """The tools, as JSON objects, of the first `<tools>` in a text that has some."""
    opening, closing = _TOOLS
    at = 0
    while (end := text.find(closing, at)) >= 0:
        begin = text.rfind(opening, at, end)
        at = end + len(closing)
        try:
            found = _values(text[begin + len(opening) : end].strip()) if begin >= 0 else []
        except InputError:
            continue  # a text about the tag
        if found and all(isinstance(tool, dict) and ("name" in tool or "function" in tool) for tool in found):
            return found
    return []


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _values(text: str) -> list[Any]:
    """JSON values one after the other; the items of lists among them."""
    found, end = [], 0
    while end < len(text):
        value, end = values.read_prefix(text, end, "tools")
        found += value if isinstance(value, list) else [value]
        space = _BEFORE_MORE.match(text, end)
        end = space.end() if space else end
    return found


# ---- readers ---------------------------------------------------------------------------------------------------------


def _between(opening: str, closing: str) -> _Reader:
    """Reader of one or more JSON calls, each between the tags."""
    begins = re.compile(rf"\s*{re.escape(opening)}\s*")
    ends = re.compile(rf"\s*{re.escape(closing)}")

    def read(text: str, at: int) -> tuple[list[ToolCall], int]:
        calls: list[ToolCall] = []
        while found := begins.match(text, at):
            if named := _FUNCTION.match(text, found.end()):
                (call,), end = _function(text, named.start())
                calls.append(call)
            elif text[found.end() : found.end() + 1] not in ("{", "["):
                raise InputError("not JSON, and the types of its arguments are not known")
            elif _PYTHON.match(text, found.end()):
                end = text.find(closing, found.end())
                end = len(text) if end < 0 else end
                calls.append(_call(pythonic.read_value(text[found.end() : end])))
            else:
                value, end = values.read_prefix(text, found.end(), "call")
                calls += map(_call, value if isinstance(value, list) else [value])
            if not (closed := ends.match(text, end)):
                raise InputError(f"no {closing} after it")
            at = closed.end()
        return calls, at

    return read


def _function(text: str, at: int) -> tuple[list[ToolCall], int]:
    """`<function=name>{...}</function>`, one or more."""
    calls: list[ToolCall] = []
    while found := _FUNCTION.match(text, at):
        arguments, at = values.read_prefix(text, found.end(), "arguments")
        if not (closed := re.compile(r"\s*</function>").match(text, at)):
            raise InputError("no </function> after it")
        calls.append(ToolCall(found[1], arguments_of(arguments, "arguments")))
        at = closed.end()
    if not calls:
        raise InputError("arguments that are not a JSON object have no types")
    return calls, at


def _list_after(text: str, at: int) -> tuple[list[ToolCall], int]:
    """`[TOOL_CALLS] [{"name": ..., "arguments": ...}, ...]`"""
    value, end = values.read_prefix(text, text.index("]", at) + 1, "calls")
    return [_call(call) for call in (value if isinstance(value, list) else [value])], end


def _rest(text: str, at: int) -> tuple[list[ToolCall], int]:
    """`<|python_tag|>` and JSON calls, to the end of the text."""
    begin = text.index(">", at) + 1
    if stop := re.search(r"<\|(?:eom_id|eot_id)\|>\s*\Z", text):
        return json_calls.read(text[begin : stop.start()]), stop.start()
    return json_calls.read(text[begin:]), len(text)


def _llama4(text: str, at: int) -> tuple[list[ToolCall], int]:
    """`<|python_start|>[name(key=value)]<|python_end|>`, or JSON between the two."""
    begin, end = text.index(">", at) + 1, text.rfind("<|python_end|>")
    if end < begin:
        raise InputError("no <|python_end|> after it")
    inner = text[begin:end]
    read = pythonic.read if inner.lstrip().startswith("[") else json_calls.read
    return read(inner), end + len("<|python_end|>")


def _refuse(text: str, at: int) -> tuple[list[ToolCall], int]:
    raise InputError("a format of calls that is not read")


def _call(value: Any) -> ToolCall:
    if not isinstance(value, dict):
        raise InputError("expected an object with `name` and `arguments`")
    if value.get("type") == "function" and isinstance(value.get("function"), dict):
        value = value["function"]
    keys = set(value) - {"id", "type"}
    if keys not in ({"name", "arguments"}, {"name", "parameters"}, {"name"}):
        raise InputError(f"expected `name` and `arguments`, got {', '.join(f'{key!r:.40}' for key in value)}")
    call_id = value.get("id")
    arguments = value.get("arguments", value.get("parameters", {}))
    return ToolCall(value["name"], arguments_of(arguments, "arguments"), None if call_id is None else str(call_id))


_READERS: dict[str, _Reader] = {
    "tool_call": _between("<tool_call>", "</tool_call>"),
    "function_call": _between("<function_call>", "</function_call>"),
    "functioncall": _between("<functioncall>", "</functioncall>"),
    "function": _function,
    "tool_calls": _list_after,
    "python_tag": _rest,
    "python_start": _llama4,
    "other": _refuse,
}
_OPENING = re.compile(
    # A tag counts where calls follow it, or where it begins a line: a text may also speak of the tag, or quote it.
    r"(?<!`)(?:(?P<tool_call><tool_call>)(?=\s*(?:[{\[]|<function=))|(?P<function_call><function_call>)(?=\s*[{\[])"
    r"|(?P<functioncall><functioncall>)(?=\s*[{\[])|(?P<function><function=[^<>\s]{1,512}>)"
    r"|(?P<tool_calls>\[TOOL_CALLS\])(?=\s*(?:[{\[]|\w{1,512}[{\[]))"
    r"|(?P<python_tag><\|python_tag\|>)|(?P<python_start><\|python_start\|>)"
    r"|(?P<other>^[ \t]*<(?:tool_call|function_call|functioncall|function_calls|tool_use|use_mcp_tool"
    r"|start_function_call)>"
    r"|<invoke name=|<(?:execute_bash|execute_ipython)>|<\|(?:tool_call|tool_calls|tool_call_start|tool_call_begin"
    r"|tool_calls_section_begin|action_start|START_ACTION|FunctionCallBegin|call)\|>"
    r"|<\uff5ctool\u2581calls?\u2581begin\uff5c>|\u273fFUNCTION\u273f))",
    re.MULTILINE,
)
