"""SWE-agent's files before 1.0, whose messages do not say what they are."""

import json

import pytest

from data.trajectories import find_actions, read_trajectories
from maverick_jax.errors import InputError
from tests.helpers.readings import calls, roles


def act(thought, action):
    said = f"{thought}\n```\n{action}\n```"
    return {"role": "assistant", "content": said, "thought": thought, "action": action, "agent": "primary"}


def message(role, content, **fields):
    return {"role": role, "content": content, "agent": "primary", **fields}


def read(folder, *history):
    (folder / "run.traj").write_text(json.dumps({
        "environment": "env", "trajectory": [], "info": {"exit_status": "submitted"},
        "history": [message("system", "You are an agent."), *history]}))  # fmt: skip
    return list(read_trajectories(folder / "run.traj", unknown="refuse"))


def test_before_1_0_the_users_message_after_a_command_is_its_result(tmp_path):
    result = message("user", "a.py\nbash-$")
    (found,) = read(tmp_path, message("user", "Fix a.py."), act("Look.", "ls\n"), result, act("Done.", "submit\n"))
    assert calls(found) == [("bash", {"command": "ls"}), ("bash", {"command": "submit"})]
    assert roles(found) == ["SYSTEM", "USER", "ASSISTANT", "TOOL", "ASSISTANT"]
    assert found.steps[3].message.text == "a.py\nbash-$" and found.outcome.termination == "submitted"


def test_before_1_0_failed_commands_are_failures(tmp_path):
    history = [message("user", "Fix it."), act("Run.", "python b"), message("user", "bash: python: command not found"),
               act("Again.", "python a"), message("user", "ok"), act("", "submit")]  # fmt: skip
    actions = find_actions(read(tmp_path, *history)[0])
    assert [(action.failed, action.recovers) for action in actions] == [(True, False), (False, True), (False, False)]


def test_before_1_0_a_message_after_a_text_is_the_users(tmp_path):
    history = [message("user", "A demonstration.", is_demo=True), message("user", "Fix it."),
               message("assistant", "Hm.", thought="Hm.", action=""), message("user", "Your output was not formatted"),
               act("Look.", "ls"), message("user", "a.py"), act("Done.", "submit")]  # fmt: skip
    (found,) = read(tmp_path, *history)
    assert roles(found)[1:6] == ["USER", "USER", "ASSISTANT", "USER", "ASSISTANT"]
    assert found.steps[1].weight == 0 and calls(found) == [("bash", {"command": "ls"}), ("bash", {"command": "submit"})]


def test_before_1_0_a_second_command_needs_the_result_of_the_first(tmp_path):
    with pytest.raises(InputError, match=r"history\[2\]: call 0 \('bash'\) has no result before history\[3\]"):
        read(tmp_path, message("user", "Fix it."), act("Look.", "ls"), act("Done.", "submit"))
