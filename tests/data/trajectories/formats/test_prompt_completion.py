"""Prompts with completions: texts and messages; only the completion is learned."""

import pytest

from maverick_jax.errors import InputError
from tests.helpers.readings import ANSWER, ASK, TOOLS, calls, learned, read, roles


def test_texts_are_a_message_of_the_user_and_one_of_the_assistant(tmp_path):
    (found,) = read(tmp_path, {"prompt": "What time is it?", "completion": "It is ten."}, unknown="refuse")
    assert roles(found) == ["USER", "ASSISTANT"] and learned(found) == "It is ten.<|eot|>"
    assert found.provenance.format == "prompt_completion"


def test_of_messages_those_of_the_completion_are_learned(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "get_time", "arguments": ""}}]}
    record = {
        "prompt": [ASK, {"role": "assistant", "content": "It is nine."}, {"role": "user", "content": "Sure?"}],
        "completion": [call, {"role": "tool", "content": "10:00"}, ANSWER],
        "tools": TOOLS,
    }
    (found,) = read(tmp_path, record, format="prompt_completion", unknown="refuse")
    assert calls(found) == [("get_time", {})] and len(found.steps) == 6
    assert learned(found) == "[get_time()]<|eot|>It is ten.<|eot|>"


@pytest.mark.parametrize("prompt", ["What time is it?", [ASK]])
@pytest.mark.parametrize("completion", ["It is ten.", [ANSWER]])
def test_texts_and_messages_mix(tmp_path, prompt, completion):
    (found,) = read(tmp_path, {"prompt": prompt, "completion": completion, "system": "Be brief."})
    assert roles(found) == ["SYSTEM", "USER", "ASSISTANT"] and learned(found) == "It is ten.<|eot|>"


def test_a_message_of_the_prompt_may_ask_to_be_learned(tmp_path):
    prompt = [ASK, {"role": "assistant", "content": "It is nine.", "train": True}, {"role": "user", "content": "Sure?"}]
    (found,) = read(tmp_path, {"prompt": prompt, "completion": [ANSWER]})
    assert learned(found) == "It is nine.<|eot|>It is ten.<|eot|>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completion": ""}, "completion: an empty turn"),
        ({"completion": []}, "messages: no message of the assistant"),
        ({"completion": 3}, "completion: expected text, got an integer"),
        ({"prompt": None}, "prompt: is null"),
        ({"label": False}, "label: preference data"),
        ({"messages": [ASK, ANSWER]}, "could be openai or prompt_completion; choose one with --format, or "),
    ],
)
def test_malformed_records_are_refused(tmp_path, change, reason):
    with pytest.raises(InputError, match=f"record 0, line 1: {reason}"):
        read(tmp_path, {"prompt": "x", "completion": "y"} | change)
