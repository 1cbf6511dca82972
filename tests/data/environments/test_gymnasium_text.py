"""A Gymnasium environment of texts, played by calls and by messages."""

from typing import Literal

from data.environments import GymnasiumTextConfig
from maverick_jax.text.chat import Message, Role, Tool, ToolCall
from train.rollouts.guarded import GuardedEnvironment


class Maze:
    """Ends after two moves; `move(to="east")` is rewarded."""

    def reset(self, seed=None):
        self.moves = 0
        return f"room {seed}", {}

    def step(self, action):
        self.moves += 1
        good = action == 'move(to="east", steps=1)'
        return f"did {action}", 0.5 * good, self.moves == 2, False, {}


class MazeConfig(GymnasiumTextConfig):
    """`kind: maze`."""

    kind: Literal["maze"] = "maze"

    def instance(self):
        return Maze()

    def tools(self, instance):
        return (Tool("move"),)


EAST = ToolCall("move", {"to": "east", "steps": 1})


def test_calls_and_messages_are_actions_and_rewards_add_up():
    environment = MazeConfig().make()
    assert environment.reset(3).steps[0].message.text == "room 3"
    (said,) = environment.step(Message(Role.ASSISTANT, "look")).steps
    assert (said.message.role, said.message.text) == (Role.USER, "did look")
    found = environment.step(Message(Role.ASSISTANT, calls=(EAST,)))
    assert found.steps[0].message.role is Role.TOOL
    assert (found.outcome.reward, found.outcome.success, found.outcome.termination) == (0.5, False, "terminated")


def test_several_calls_are_several_actions():
    behind = GuardedEnvironment(MazeConfig().make, time_limit=None, most_characters=100)
    behind.reset(0)
    found = behind.step(Message(Role.ASSISTANT, calls=(EAST, EAST, EAST)))
    assert len(found.steps) == 2 and found.outcome.reward == 1.0 and found.outcome.success
    assert [tool.name for tool in behind.tools] == ["move"]
