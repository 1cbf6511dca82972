"""Calls written as text between tags: read where they are certain, refused by their tag elsewhere."""

import contextlib
import json

import pytest

from data.trajectories.meaning import refuse_placeholder
from data.trajectories.tagged import declared_tools, results, take_calls
from maverick_jax.errors import InputError
from maverick_jax.text.chat import ToolCall
from tests.helpers.readings import ANSWER, ASK, TOOLS, calls, read

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
WEATHER, GET_TIME = ToolCall("weather", {"city": "Oslo"}), ToolCall("get_time")
NOW, NESTED = '{"name": "get_time"}', ToolCall("f", {"a": "</tool_call>"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", [WEATHER]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>\n{NOW}\n</tool_call>\n", [WEATHER, GET_TIME]),
        (f"<tool_call>[{CALL}, {CALL}]</tool_call>", [WEATHER, WEATHER]),
        ("<tool_call>\n{'name': 'weather', 'arguments': {'city': 'Oslo'}}\n</tool_call>", [WEATHER]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}</tool_call>', [WEATHER]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', [NESTED]),
        ('<tool_call><function=weather>{"city": "Oslo"}</function></tool_call>', [WEATHER]),
        (f"<function_call>{CALL}</function_call>", [WEATHER]),
        ('<function=weather>{"city": "Oslo"}</function>', [WEATHER]),
        ('<function=get_time>{}</function><function=get_time>{}</function><|eom_id|>', [GET_TIME, GET_TIME]),
        (f"[TOOL_CALLS] [{CALL}]</s>", [WEATHER]),
        ('[TOOL_CALLS][{"name": "get_time", "arguments": {}, "id": "abc"}]', [GET_TIME]),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}<|eom_id|>', [WEATHER]),
        ('<|python_tag|>{"name": "get_time", "parameters": {}}', [GET_TIME]),
        ('<|python_start|>[weather(city="Oslo"), get_time()]<|python_end|>', [WEATHER, GET_TIME]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "Let me look."])
def test_certain_calls_are_read(text, found, before):
    assert take_calls(f"{before}\n{text}" if before else text) == (before, found)


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        (f"<tool_call>{CALL}</tool_call> It is raining.", "<tool_call>"),
        (f"<tool_call>{CALL}", "<tool_call>"),
        ("<tool_call>{broken</tool_call>", "<tool_call>"),
        ('<tool_call>{"tool": "f"}</tool_call>', "<tool_call>"),
        ("<tool_call>get_time\n<arg_key>a</arg_key></tool_call>", "<tool_call>"),
        ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", "<tool_call>"),
        ("<function=f>\n<parameter=a>1</parameter>\n</function>", "<function=f>"),
        ("<functioncall> {'name': 'f', 'arguments': '{}'} <|endoftext|>", "<functioncall>"),
        ("[TOOL_CALLS]get_time[ARGS]{}", "[TOOL_CALLS]"),
        ('<|python_tag|>brave_search.call(query="x")', "<|python_tag|>"),
        ("<|python_start|>[f(a=1)]", "<|python_start|>"),
        ('<function_calls>\n<invoke name="f">\n</invoke></function_calls>', "<function_calls>"),
        ('I look.<invoke name="f"></invoke>', "<invoke name="),
        ("<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0", "<|tool_calls_section_begin|>"),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581calls\u2581begin\uff5c>"),
        ("<execute_bash>\nls\n</execute_bash>", "<execute_bash>"),
    ],
)
def test_uncertain_calls_are_refused_by_their_tag(text, tag):
    with pytest.raises(InputError, match="calls as text, which would be learned as an answer") as refused:
        take_calls(text)
    assert str(refused.value).startswith(f"{tag}: ") and len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "text", ["", "It is ten.", "Hermes writes `<tool_call>` before a call.", "Use <tool_call> and </tool_call>.",
             "a function=f", "[TOOL] calls", "Mistral's [TOOL_CALLS] come first.", "It is `<|python_tag|>`.",
             '{"name": "f"}'],
)  # fmt: skip
def test_a_text_without_calls_stays(text):
    assert take_calls(text) == (text, [])


def test_an_uncertain_call_stops_a_record_unless_it_is_not_learned(tmp_path):
    said = {"role": "assistant", "content": "<function_calls>\n<invoke name='f'/>\n</function_calls>"}
    ask = {"role": "user", "content": "And now?"}
    with pytest.raises(InputError, match=r"messages\[1\]: <function_calls>: calls as text"):
        read(tmp_path, {"messages": [ASK, said, ask, ANSWER]})
    (found,) = read(tmp_path, {"messages": [ASK, said | {"train": False}, ask, ANSWER]})
    assert found.steps[1].message.text == said["content"]


def test_calls_as_text_beside_calls_are_refused(tmp_path):
    said = {"role": "assistant", "content": f"<tool_call>{CALL}</tool_call>",
            "tool_calls": [{"function": {"name": "get_time", "arguments": "{}"}}]}  # fmt: skip
    with pytest.raises(InputError, match=r"messages\[1\]: content: '<tool_call>.*calls as text beside `tool_calls`"):
        read(tmp_path, {"messages": [ASK, said]})


def test_a_tag_in_an_argument_or_of_the_user_is_text(tmp_path):
    function = {"name": "write", "arguments": {"text": f"<tool_call>{CALL}</tool_call>"}}
    said = {"role": "assistant", "tool_calls": [{"function": function}]}
    (found,) = read(tmp_path, {"messages": [ASK | {"content": f"What is <tool_call>{CALL}</tool_call>?"}, said]})
    assert calls(found) == [("write", function["arguments"])]


def test_results_without_their_tags():
    assert results("10:00", 1) == ["10:00"] == results("<tool_response>\n10:00\n</tool_response>", 1)
    assert results("<tool_response>a</tool_response>\n\n<tool_response>\nb\n</tool_response>\n", 2) == ["a", "b"]
    for text in ("x <tool_response>a</tool_response>", "<tool_response>a", "<tool_response>a</tool_response> x"):
        assert results(text, 1) == [text]


def test_tools_between_tags():
    first, second = TOOLS
    about = "Signatures are within <tools> XML tags, <tools></tools>. "
    for listed in (json.dumps(TOOLS), f"{json.dumps(first)}\n{json.dumps(second)}"):
        assert declared_tools(f"{about}<tools>\n{listed}\n</tools> Go.") == TOOLS
    for text in ("", about, "<tools>[1]</tools>", "<tools>{</tools>", "</tools>[]"):
        assert declared_tools(text) == []


PARTS = ("<tool_response>", "<tools>", "<tool_call>", "\n", " ", "<tools></tools>", "\n<image> ", "<image> ")


@pytest.mark.parametrize("part", PARTS)
def test_long_hostile_texts_are_read_or_refused(part):
    """They would take hours if a pattern went back over the text."""
    text = part * (400_000 // len(part))
    assert declared_tools(text) == []
    assert results(text, 1) == [text]
    with contextlib.suppress(InputError):
        assert take_calls(text) == (text, [])
    with contextlib.suppress(InputError):
        refuse_placeholder(text)
