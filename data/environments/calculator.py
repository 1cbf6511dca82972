"""A calculator as an environment: the user gives a sum, tools compute, and the answer is right or wrong."""

import random
import re
from typing import Annotated, Literal

from pydantic import Field

from data.environments.base import EnvironmentConfig, Feedback, Opening
from data.trajectories.trajectory import Outcome, Step
from maverick_jax.text.chat import Message, Role, Tool, ToolCall

Operation = Literal["add", "subtract", "multiply"]
SIGNS: dict[Operation, str] = {"add": "+", "subtract": "-", "multiply": "*"}
LARGEST = 10**12
"""Largest argument of a tool."""
_INTEGER = re.compile(r"-?\d+")
_SCHEMA = {"type": "object", "properties": {name: {"type": "integer"} for name in "ab"}, "required": ["a", "b"]}
TOOLS = tuple(Tool(name, f"a {sign} b", _SCHEMA) for name, sign in SIGNS.items())


class CalculatorConfig(EnvironmentConfig):
    """`kind: calculator`: sums of whole numbers, such as `17 * 23`, which `rl_tiny` learns to have computed."""

    kind: Literal["calculator"] = "calculator"
    """A calculator."""
    operations: Annotated[tuple[Operation, ...], Field(min_length=1, strict=False)] = ("add", "subtract", "multiply")
    """Operations of the sums; the episode's seed draws one of each step."""
    most: Annotated[int, Field(ge=1, le=1_000_000)] = 99
    """Largest number in a sum."""
    sum_steps: Annotated[int, Field(ge=1, le=8)] = 1
    """Operations of one sum: with 2, `(17 * 23) - 5`."""
    declare: bool = True
    """Whether the tools are declared to the model. false: prompts are short, and the model must know them."""
    max_turns: Annotated[int, Field(ge=1)] = 4
    """Maximum number of assistant messages in an episode. An episode that has not ended by then has failed."""

    def make(self) -> "Calculator":
        return Calculator(self)


class Calculator:
    """One sum per episode, which ends with the assistant's first message without a call: its last whole number is the
    answer."""

    name = "calculator"

    def __init__(self, config: CalculatorConfig):
        self.config, self.tools = config, TOOLS if config.declare else ()

    def reset(self, seed: int) -> Opening:
        draw, config = random.Random(f"calculator {seed}"), self.config
        text, self.answer = str(first := draw.randint(0, config.most)), first
        self.sum: list[tuple[Operation, int]] = []
        for i in range(config.sum_steps):
            operation, number = draw.choice(config.operations), draw.randint(0, config.most)
            self.sum.append((operation, number))
            self.answer = computed(operation, self.answer, number)
            text = f"{f'({text})' if i else text} {SIGNS[operation]} {number}"
        self.first = first
        return Opening([Step(Message(Role.USER, text))], "-".join(operation for operation, _ in self.sum))

    def step(self, message: Message) -> Feedback:
        if message.calls:
            return Feedback([result_of(call) for call in message.calls])
        found = _INTEGER.findall(message.text)
        right = bool(found) and len(found[-1]) < 40 and int(found[-1]) == self.answer
        return Feedback(outcome=Outcome(float(right), right, "right" if right else "wrong" if found else "no number"))


def computed(operation: Operation, a: int, b: int) -> int:
    return {"add": a + b, "subtract": a - b, "multiply": a * b}[operation]


def result_of(call: ToolCall) -> Step:
    """The result of any call, or a message of an error."""
    a, b = call.arguments.get("a"), call.arguments.get("b")
    if call.name not in SIGNS:
        why = f"no function {call.name[:40]}; there are {', '.join(SIGNS)}"
    elif call.arguments.keys() != {"a", "b"} or type(a) is not int or type(b) is not int:
        why = f"{call.name} takes a (integer), b (integer)"
    elif max(abs(a), abs(b)) > LARGEST:
        why = f"numbers of at most {LARGEST:,}"
    else:
        return Step(Message(Role.TOOL, str(computed(call.name, a, b)), call_id=call.id))
    return Step(Message(Role.TOOL, f"Error: {why}", call_id=call.id), error=True)
