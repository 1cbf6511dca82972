"""OpenAI's format as other programs write it: older names, empty arguments, results by tool, columns with nulls."""

import json

import pytest

from data.trajectories import Tally, find_actions
from maverick_jax.errors import InputError
from tests.helpers.readings import ANSWER, ASK, TOOLS, calls, learned, read, roles


def conversation(*messages, **fields):
    return {"messages": [ASK, *messages], "tools": TOOLS, **fields}


def calling(*functions, content=None):
    made = [{"id": f"c{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
    return {"role": "assistant", "content": content, "tool_calls": made}


GET_TIME, WEATHER = {"name": "get_time", "arguments": "{}"}, {"name": "weather", "arguments": '{"city": "Oslo"}'}

# ---- older names -----------------------------------------------------------------------------------------------------


def test_a_legacy_function_call_is_a_call(tmp_path):
    message = {"role": "assistant", "content": "Let me look.", "function_call": GET_TIME}
    (found,) = read(tmp_path, conversation(message))
    assert calls(found) == [("get_time", {})]
    assert learned(found).endswith("Let me look.<|python_start|>[get_time()]<|python_end|><|eot|>")


def test_a_legacy_conversation_with_functions_and_their_results(tmp_path):
    record = {
        "functions": [tool["function"] for tool in TOOLS],
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "function_call": GET_TIME},
            {"role": "function", "name": "get_time", "content": "Error: no clock"},
            {"role": "assistant", "content": None, "function_call": {"name": "get_time", "arguments": ""}},
            {"role": "function", "name": "get_time", "content": "10:00"},
            {**ANSWER, "function_call": None},
        ],
    }
    (found,) = read(tmp_path, record, unknown="refuse")
    assert roles(found) == ["USER", "ASSISTANT", "TOOL", "ASSISTANT", "TOOL", "ASSISTANT"]
    assert [tool.name for tool in found.tools] == ["get_time", "weather"]
    assert [(action.failed, action.recovers) for action in find_actions(found)] == [(True, False), (False, True)]


def test_a_legacy_call_as_json_text_and_a_request_for_one(tmp_path):
    message = {"role": "assistant", "content": "", "function_call": json.dumps(WEATHER)}
    (found,) = read(tmp_path, conversation(message, function_call="auto"), unknown="refuse")
    assert calls(found) == [("weather", {"city": "Oslo"})]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"role": "user", "content": "x", "function_call": GET_TIME}, r"messages\[1\].function_call: calls in a place"),
        (
            {**calling(GET_TIME), "function_call": GET_TIME},
            r"messages\[1\].function_call: the message has `tool_",
        ),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "["}}, r"arguments: not JSON"),
        ({"role": "assistant", "content": "", "refusal": "No."}, r"messages\[1\].refusal: .*put its text into the"),
    ],
)
def test_calls_that_cannot_be_read_are_refused(tmp_path, change, reason):
    with pytest.raises(InputError, match=reason):
        read(tmp_path, conversation(change))


def test_tools_and_functions_are_not_both_read(tmp_path):
    with pytest.raises(InputError, match=r"functions: `tools` declares tools too"):
        read(tmp_path, conversation(ANSWER, functions=[TOOLS[0]["function"]]))


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", "  ", "{}", "null", {}, None])
def test_empty_arguments_are_none(tmp_path, arguments):
    function = {"name": "get_time", "arguments": arguments}
    (found,) = read(tmp_path, conversation(calling(function), {"role": "tool", "content": "10:00"}, ANSWER))
    assert calls(found) == [("get_time", {})]


@pytest.mark.parametrize("arguments", ['""', "[]", "{", "0"])
def test_arguments_that_are_no_object_are_refused(tmp_path, arguments):
    with pytest.raises(InputError, match=r"messages\[1\]: .*function\.arguments: "):
        read(tmp_path, conversation(calling({"name": "get_time", "arguments": arguments})))


def test_undeclared_nulls_of_a_column_are_left_out_of_arguments_and_counted(tmp_path):
    function = {"name": "weather", "arguments": {"city": "Oslo", "zone": None, "unit": "C"}}
    tally = Tally()
    (found,) = read(tmp_path, conversation(calling(function)), tally=tally)
    assert calls(found) == [("weather", {"city": "Oslo", "unit": "C"})]
    assert tally.as_dict()["left_out_fields"] == {"messages[].tool_calls[].function.arguments.zone": 1}


@pytest.mark.parametrize("arguments", [{"city": None}, '{"zone": null}'])
def test_declared_nulls_and_nulls_in_text_stay(tmp_path, arguments):
    (found,) = read(tmp_path, conversation(calling({"name": "weather", "arguments": arguments})))
    assert list(calls(found)[0][1].values()) == [None]


# ---- declarations of tools -------------------------------------------------------------------------------------------


def test_nulls_that_fill_a_column_are_left_out_of_schemas(tmp_path):
    tools = [
        {"type": "function", "function": {"name": "weather", "description": None, "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}, "unit": None}, "required": ["city"]}}},
        {"type": "function", "function": {"name": "get_time", "parameters": {
            "type": "object", "properties": {"city": None, "unit": None}, "required": None}}},
    ]  # fmt: skip
    (found,) = read(tmp_path, conversation(ANSWER) | {"tools": tools})
    assert [(tool.name, tool.parameters) for tool in found.tools] == [
        ("weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
        ("get_time", {"type": "object", "properties": {}}),
    ]


# ---- results by tool -------------------------------------------------------------------------------------------------


def results(*named):
    return [{"role": "tool", "name": name, "content": content} for name, content in named]


def test_results_of_parallel_calls_may_name_the_tool(tmp_path):
    given = results(("weather", "rain"), ("get_time", "10:00"))
    (found,) = read(tmp_path, conversation(calling(GET_TIME, WEATHER), *given, ANSWER))
    assert [step.message.text for step in found.steps[2:4]] == ["10:00", "rain"]


def test_results_of_the_same_tool_answer_its_calls_in_order(tmp_path):
    given = results(("weather", "rain"), ("get_time", "10:00"), ("weather", "sun"))
    (found,) = read(tmp_path, conversation(calling(WEATHER, GET_TIME, WEATHER), *given, ANSWER))
    assert [step.message.text for step in found.steps[2:5]] == ["rain", "10:00", "sun"]


def test_the_name_of_the_tool_may_stand_for_the_id(tmp_path):
    given = [{"role": "tool", "tool_call_id": n, "content": n} for n in ("weather", "get_time")]
    (found,) = read(tmp_path, conversation(calling(GET_TIME, WEATHER), *given, ANSWER))
    assert [(s.message.text, s.message.call_id) for s in found.steps[2:4]] == [("get_time", "c0"), ("weather", "c1")]


def test_calls_without_ids_are_answered_by_tool(tmp_path):
    message = {"role": "assistant", "tool_calls": [{"function": GET_TIME}, {"function": WEATHER}]}
    given = results(("weather", "rain"), ("get_time", "10:00"))
    (found,) = read(tmp_path, conversation(message, *given, ANSWER))
    assert [step.message.text for step in found.steps[2:4]] == ["10:00", "rain"]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"name": "walk"}, r"messages\[2\]: name: 'walk'; expected 'get_time'"),
        ({"name": "get_time", "tool_call_id": "c1"}, r"messages\[2\]: name: 'get_time'; expected 'weather'"),
        ({"name": "weather", "tool_call_id": "c9"}, r"messages\[2\]: tool_call_id: 'c9'; expected a call"),
    ],
)
def test_results_of_another_tool_or_call_are_refused(tmp_path, result, reason):
    with pytest.raises(InputError, match=reason):
        read(tmp_path, conversation(calling(GET_TIME, WEATHER), {"role": "tool", "content": "x", **result}))
