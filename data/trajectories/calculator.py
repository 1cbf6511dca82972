"""Generates the shipped demonstrations of the calculator: `python -m data.trajectories.calculator | gzip -9n > FILE`.

They are a start for reinforcement learning that leaves something to learn: some have a tool compute the sum and repeat
its result, more than half guess a number. There are many, so that a model learns to copy numbers and not these numbers.
Equal seeds give equal demonstrations.
"""

import random

from data.environments.calculator import CalculatorConfig, result_of
from data.trajectories.formats import ours
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

COUNT, SEED = 30_000, 11
FIRST_EPISODE = 1 << 40
"""Seeds of episodes from here on are the demonstrations': training draws others."""
GUESSED = 0.58
"""Share of demonstrations that guess."""


def demonstration(number: int, seed: int = SEED) -> Trajectory:
    """Demonstration `number`."""
    draw = random.Random(f"demonstration {seed} {number}")
    environment = CalculatorConfig(declare=False).make()
    steps = [*environment.reset(FIRST_EPISODE + number).steps]
    says = lambda text: steps.append(Step(Message(Role.ASSISTANT, text)))
    if draw.random() < GUESSED:
        spread = max(10, abs(environment.answer) // 2)
        says(str(environment.answer + draw.choice((-1, 1)) * draw.randint(1, spread)))
        return Trajectory(steps)
    (operation, b), a = environment.sum[0], environment.first
    call = ToolCall(operation, {"a": a, "b": b})
    steps += [Step(Message(Role.ASSISTANT, calls=(call,))), result := result_of(call)]
    says(result.message.text)
    return Trajectory(steps)


def generate(count: int = COUNT, seed: int = SEED) -> list[Trajectory]:
    """Generates `count` demonstrations."""
    return [demonstration(number, seed) for number in range(count)]


if __name__ == "__main__":
    for trajectory in generate():
        print(ours.write(trajectory))
