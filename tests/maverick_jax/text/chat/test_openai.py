"""Messages as OpenAI's clients send them, with fields that say nothing."""

import pytest

from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, from_openai
from maverick_jax.text.chat.openai import message_from_openai

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}


def test_fields_that_say_nothing_are_accepted():
    empty = {"refusal": None, "audio": None, "function_call": None, "annotations": [], "name": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "", **empty}
    messages = [{"role": "user", "content": "x", "tool_calls": None, "name": "ann"}, answer]
    assert from_openai(messages).messages[1].calls[0].name == "f"
    assert message_from_openai({"role": "assistant", "content": "x", "tool_calls": [], **empty}).text == "x"


def test_developer_is_system():
    assert message_from_openai({"role": "developer", "content": "x"}) == Message(Role.SYSTEM, "x")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_have_two_names(name):
    assert message_from_openai({"role": "assistant", "content": "x", name: "hmm"}).thought == "hmm"


@pytest.mark.parametrize("strict", [True, False, None])
def test_tools_may_be_strict(strict):
    tool = {"type": "function", "function": {"name": "f", "strict": strict}}
    assert from_openai([{"role": "user", "content": "x"}], [tool]).tools[0].name == "f"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "assistant", "content": "x", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "audio"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": "x", "annotations": [1]}, "annotations"),
        ({"role": "user", "content": "x", "reasoning": "hmm"}, "reasoning"),
        ({"role": "user", "content": "x", "weight": None}, "weight"),
    ],
)
def test_the_same_fields_with_a_meaning_are_refused(message, field):
    with pytest.raises(InputError, match=f"{field}: unknown field"):
        message_from_openai(message)
