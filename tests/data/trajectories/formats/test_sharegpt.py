"""ShareGPT: a text and the calls after it are one turn, and calls and results may stand in Hermes' tags."""

import json

import pytest

from maverick_jax.errors import InputError
from tests.helpers.readings import TOOLS, calls, learned, read, roles

HUMAN, ANSWER = {"from": "human", "value": "What time is it?"}, {"from": "gpt", "value": "It is ten."}
CALL = {"from": "function_call", "value": '{"name": "get_time", "arguments": {}}'}
LOOK, RESULT = {"from": "gpt", "value": "Let me look."}, {"from": "observation", "value": "10:00"}
SYSTEM = {
    "from": "system",
    "value": "Tools are in <tools></tools>, calls go in <tool_call></tool_call>. "
    f"<tools>{json.dumps(TOOLS[:1])}</tools>",
}


def tagged(*values):
    return "\n".join(f"<tool_call>\n{json.dumps(value)}\n</tool_call>" for value in values)


GET_TIME, WEATHER = {"name": "get_time", "arguments": {}}, {"name": "weather", "arguments": {"city": "Oslo"}}


def conversation(*turns):
    return {"conversations": [HUMAN, *turns]}


# ---- a text before calls ---------------------------------------------------------------------------------------------


def test_a_text_and_the_call_after_it_are_one_turn(tmp_path):
    (found,) = read(tmp_path, conversation(LOOK, CALL, RESULT, ANSWER))
    assert roles(found) == ["USER", "ASSISTANT", "TOOL", "ASSISTANT"]
    assert learned(found) == "Let me look.<|python_start|>[get_time()]<|python_end|><|eot|>It is ten.<|eot|>"


def test_a_text_and_the_parallel_calls_after_it_are_one_turn(tmp_path):
    (found,) = read(tmp_path, conversation(LOOK, CALL, CALL, RESULT, RESULT, ANSWER))
    assert [(s.message.text, len(s.message.calls)) for s in found.steps[1:2]] == [("Let me look.", 2)]
    assert roles(found) == ["USER", "ASSISTANT", "TOOL", "TOOL", "ASSISTANT"]


def test_only_the_last_text_before_a_call_belongs_to_it(tmp_path):
    (found,) = read(tmp_path, conversation({"from": "gpt", "value": "Well."}, LOOK, CALL, RESULT, ANSWER, LOOK))
    assert [step.message.text for step in found.steps[1:]] == ["Well.", "Let me look.", "10:00", "It is ten.",
                                                                "Let me look."]  # fmt: skip


def test_a_text_and_a_call_share_their_weight(tmp_path):
    weighed = [turn | {"weight": 0} for turn in (LOOK, CALL)]
    (found,) = read(tmp_path, conversation(*weighed, RESULT, ANSWER))
    assert found.steps[1].weight == 0 and learned(found) == "It is ten.<|eot|>"
    with pytest.raises(InputError, match=r"conversations\[1\]: weight: calls in a row, and the text before them, are"):
        read(tmp_path, conversation(weighed[0], CALL, RESULT, ANSWER))


# ---- Hermes ----------------------------------------------------------------------------------------------------------


def test_calls_and_results_in_tags_are_calls_and_results(tmp_path):
    call = {"from": "gpt", "value": tagged(GET_TIME)}
    result = {"from": "tool", "value": '<tool_response>\n{"time": "10:00"}\n</tool_response>'}
    first, second = read(tmp_path, {"conversations": [SYSTEM, HUMAN, call]},
                         {"conversations": [SYSTEM, HUMAN, call, result, ANSWER]})  # fmt: skip
    assert calls(first) == calls(second) == [("get_time", {})]
    assert learned(first) == "[get_time()]<|eot|>"
    assert learned(second) == "[get_time()]<|eot|>It is ten.<|eot|>"
    assert second.steps[3].message.text == '{"time": "10:00"}'
    assert [tool.name for tool in second.tools] == ["get_time"]


def test_parallel_calls_and_their_results_in_tags(tmp_path):
    call = {"from": "gpt", "value": "I look.\n" + tagged(GET_TIME, WEATHER)}
    texts = ('{"error": "no clock"}', "rain")
    result = {"from": "tool", "value": "".join(f"<tool_response>\n{text}\n</tool_response>\n" for text in texts)}
    (found,) = read(tmp_path, conversation(call, result, ANSWER))
    assert [(step.message.text, step.error) for step in found.steps[1:4]] == [
        ("I look.", False), (texts[0], True), (texts[1], False)]  # fmt: skip
    assert calls(found) == [("get_time", {}), ("weather", {"city": "Oslo"})]


def test_a_users_message_of_results_in_tags_is_a_result(tmp_path):
    call = {"from": "gpt", "value": tagged(GET_TIME)}
    result = {"from": "human", "value": "<tool_response>\n10:00\n</tool_response>"}
    (found,) = read(tmp_path, conversation(call, result, ANSWER))
    assert roles(found) == ["USER", "ASSISTANT", "TOOL", "ASSISTANT"] and found.steps[2].message.text == "10:00"


def test_another_number_of_results_than_calls_is_refused(tmp_path):
    result = {"from": "tool", "value": "<tool_response>a</tool_response><tool_response>b</tool_response>"}
    with pytest.raises(InputError, match=r"conversations\[2\]: <tool_response>: 2 results for 1 calls"):
        read(tmp_path, conversation({"from": "gpt", "value": tagged(GET_TIME)}, result))


def test_results_may_name_the_tool(tmp_path):
    results = [{**RESULT, "name": "weather", "value": "rain"}, {**RESULT, "name": "get_time"}]
    other = {"from": "function_call", "value": json.dumps(WEATHER)}
    (found,) = read(tmp_path, conversation(CALL, other, *results, ANSWER))
    assert [step.message.text for step in found.steps[2:4]] == ["10:00", "rain"]
