"""Failed calls and their recoveries: compared with a slow twin, and with a hand count on real trajectories."""

import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.trajectories import Step, Tally, Trajectory, find_actions, read_tools, read_trajectories
from data.trajectories.actions import intent
from maverick_jax.text.chat import Message, Role, ToolCall

HAND_COUNT = json.loads((pathlib.Path(__file__).parents[2] / "golden" / "tau_bench_hand_count.json").read_text())


def trajectory_of(*turns):
    """A trajectory of messages with calls `(name, failed)`; failed None means no result."""
    steps = [Step(Message(Role.USER, "go"))]
    for turn in turns:
        steps.append(Step(Message(Role.ASSISTANT, "", [ToolCall(name) for name, _ in turn])))
        steps += [Step(Message(Role.TOOL, "x"), failed) for _, failed in turn if failed is not None]
    return Trajectory(steps)


def test_the_next_success_of_a_tool_recovers_all_failures_before_it():
    actions = find_actions(trajectory_of([("a", True)], [("b", False)], [("a", True)], [("a", False)], [("a", False)]))
    assert [action.recovered_by for action in actions] == [3, None, 3, None, None]
    assert [action.recovers for action in actions] == [False, False, False, True, False]
    assert [(action.step, action.result) for action in actions] == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]


def test_a_parallel_call_recovers_no_failure_of_its_message():
    actions = find_actions(trajectory_of([("a", True), ("a", False)]))
    assert [action.recovered_by for action in actions] == [None, None]
    assert not any(action.recovers for action in actions)


@pytest.mark.parametrize("failures", [(True, False), (False, True), (True, True)])
def test_the_first_success_of_a_later_message_recovers_failures_among_parallel_calls(failures):
    later = [("b", False), ("a", False), ("a", False)]
    actions = find_actions(trajectory_of([("a", failed) for failed in failures], later))
    assert [action.recovered_by for action in actions[:2]] == [3 if failed else None for failed in failures]
    assert [i for i, action in enumerate(actions) if action.recovers] == [3]


def test_a_call_without_a_result_recovers_nothing():
    (failed, last) = find_actions(trajectory_of([("a", True)], [("a", None)]))
    assert failed.failed and failed.recovered_by is None and not last.recovers and last.result is None


def test_the_intent_of_a_command_is_its_first_word():
    assert intent(ToolCall("bash", {"command": " python  a.py"})) == ("bash", "python")
    assert intent(ToolCall("bash", {"command": ["x"]})) == intent(ToolCall("bash", {"command": ""})) == ("bash",)


@settings(max_examples=300)
@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=3), max_size=12))
def test_recoveries_equal_a_forward_search(turns):
    actions = find_actions(trajectory_of(*turns, [("z", False)]))
    flat = [(message, *call) for message, turn in enumerate(turns) for call in turn]
    expected = []
    for message, name, failed in flat:
        later = [j for j, other in enumerate(flat) if other[0] > message and other[1:] == (name, False)]
        expected.append(later[0] if failed and later else None)
    assert [action.recovered_by for action in actions[:-1]] == expected
    assert {i for i, action in enumerate(actions) if action.recovers} == set(expected) - {None}


# ---- real trajectories ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_data):
    tally = Tally()
    tools = read_tools(real_data / "tau_airline_tools.json")
    found = read_trajectories(real_data / "tau_airline_gpt4o.jsonl", unknown="refuse", tools=tools, tally=tally)
    return {t.provenance.id: t for t in found}, tally.as_dict()


def test_all_real_trajectories_are_read_and_counted(real):
    runs, tally = real
    assert len(runs) == 152
    expected = {"files": 1, "records": 152, "trajectories": 152, "malformed": 0, "messages": 4532, "calls": 1024,
                "failed": 70, "recovered": 49, "recoveries": 28}  # fmt: skip
    assert {name: tally[name] for name in expected} == expected
    assert tally["formats"] == {"tau_bench": 152} and tally["unknown_fields"] == {}
    assert {len(run.tools) for run in runs.values()} == {14}


def test_real_trajectories_match_their_file(real, real_data):
    runs, _ = real
    for line in (real_data / "tau_airline_gpt4o.jsonl").read_text().splitlines():
        raw = json.loads(line)
        run = runs[f"{raw['task_id']}/{raw['trial']}"]
        assert run.outcome.reward == raw["reward"] and run.extra == {"expected_actions": raw["expected_actions"]}
        assert len(run.steps) == len(raw["traj"])
        for step, message in zip(run.steps, raw["traj"], strict=True):
            assert step.message.text == (message["content"] or "") and not step.extra
            calls = [c["function"] for c in message.get("tool_calls") or []]
            assert [(c.name, dict(c.arguments)) for c in step.message.calls] == [
                (c["name"], json.loads(c["arguments"])) for c in calls]  # fmt: skip
            assert step.error == (message["role"] == "tool" and message["content"].startswith("Error:"))


@pytest.mark.parametrize("name", list(HAND_COUNT))
def test_failures_and_recoveries_agree_with_a_hand_count(real, name):
    """Indices of the messages with failed calls and with recoveries, found by reading the trajectories."""
    actions = find_actions(real[0][name])
    assert [action.step for action in actions if action.failed] == HAND_COUNT[name]["failed"]
    assert [action.step for action in actions if action.recovers] == HAND_COUNT[name]["recoveries"]
