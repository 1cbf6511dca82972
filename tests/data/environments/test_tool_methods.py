"""A class whose public methods are tools: schemas, calls, errors and rewards."""

from typing import Literal

import pytest

from data.environments import ToolMethodsConfig
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall
from train.rollouts.guarded import GuardedEnvironment


class Counter:
    """The user's class."""

    def reset(self, **row) -> str:
        self.total = row.get("start", 0)
        return f"count from {self.total} to 10"

    def add(self, amount: int, note: str | None = None) -> str:
        """Adds to the
        total.

        Args:
            amount: how much
            note (str): why

        Returns:
            The total.
        """
        self.total += amount
        if self.total > 100:
            raise ValueError("too much")
        return str(self.total)

    def show(self, digits: list[int], scale: float = 1.0) -> dict:
        return {"total": self.total, "digits": digits, "scale": scale}

    def _private(self):
        raise AssertionError


class CounterConfig(ToolMethodsConfig):
    """`kind: counter`."""

    kind: Literal["counter"] = "counter"

    def instance(self) -> Counter:
        return Counter()

    def begin(self, instance, seed: int) -> str:
        return instance.reset(start=seed)

    def reward(self, instance, answer: str) -> float:
        return float(instance.total == 10)


def answered(environment, name, **arguments):
    (step,) = environment.step(Message(Role.ASSISTANT, calls=(ToolCall(name, arguments),))).steps
    return step.message.text, step.error


def test_public_methods_are_the_tools():
    add, show = CounterConfig().make().tools
    assert (add.name, add.description) == ("add", "Adds to the total.")
    assert add.parameters["properties"] == {"amount": {"type": "integer", "description": "how much"},
                                            "note": {"type": "string", "description": "why"}}  # fmt: skip
    assert (add.parameters["required"], show.parameters["required"]) == (["amount"], ["digits"])
    assert show.parameters["properties"] == {"digits": {"type": "array"}, "scale": {"type": "number"}}


def test_calls_act_on_the_object_and_the_reward_sees_it():
    environment = CounterConfig().make()
    assert environment.reset(4).steps[0].message.text == "count from 4 to 10"
    assert answered(environment, "add", amount=6) == ("10", False)
    assert answered(environment, "show", digits=[1], scale=2) == ('{"total": 10, "digits": [1], "scale": 2}', False)
    outcome = environment.step(Message(Role.ASSISTANT, "done")).outcome
    assert (outcome.reward, outcome.success) == (1.0, True)
    environment.reset(4)
    assert environment.step(Message(Role.ASSISTANT, "done")).outcome.reward == 0.0


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("reset", {}, "no function reset; there are add, show"),
        ("_private", {}, "no function _private"),
        ("__class__", {}, "no function __class__"),
        ("add", {}, "argument amount is missing"),
        ("add", {"amount": "6"}, "argument amount is string; expected integer"),
        ("add", {"amount": True}, "argument amount is boolean"),
        ("add", {"amount": 1, "self": 2}, "no argument self"),
        ("add", {"amount": 1000}, "ValueError: too much"),
    ],
)
def test_calls_that_cannot_be_carried_out_are_answered(name, arguments, why):
    environment = CounterConfig().make()
    environment.reset(0)
    text, error = answered(environment, name, **arguments)
    assert error and why in text


def test_a_method_that_cannot_be_a_tool_is_refused():
    class Loose:
        def act(self, what):
            """Acts."""

    class LooseConfig(CounterConfig):
        def instance(self):
            return Loose()

    with pytest.raises(InputError, match="parameter what: its type is None"):
        LooseConfig().make()


def test_it_keeps_the_promises_of_environments():
    behind = GuardedEnvironment(CounterConfig().make, time_limit=60, most_characters=100)
    behind.reset(4)
    assert behind.step(Message(Role.ASSISTANT, "done")).outcome.reward == 0.0
