"""Generates the shipped demonstrations of the calculator: `python -m data.trajectories.calculator > FILE.jsonl`.

They are of mixed quality, as a start for reinforcement learning that leaves something to learn: one in four has the
tool compute the sum and repeats its result, most guess a number, others call with a wrong number or repeat another
result. Equal seeds give equal demonstrations.
"""

import random

from data.environments.calculator import CalculatorConfig, result_of
from data.trajectories.formats import ours
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

COUNT, SEED = 3000, 11
FIRST_EPISODE = 1 << 40
"""Seeds of episodes from here on are the demonstrations': training draws others."""
SHARES = {"right": 0.25, "guess": 0.55, "garbled": 0.12, "misquoted": 0.08}


def demonstration(number: int, seed: int = SEED) -> Trajectory:
    """Demonstration `number`."""
    draw = random.Random(f"demonstration {seed} {number}")
    environment = CalculatorConfig(declare=False).make()
    steps = [*environment.reset(FIRST_EPISODE + number).steps]
    says = lambda text: steps.append(Step(Message(Role.ASSISTANT, text)))
    (kind,) = draw.choices(list(SHARES), SHARES.values())
    (operation, b), a = environment.sum[0], environment.first
    if kind == "guess":
        says(str(_near(environment.answer, draw)))
        return Trajectory(steps)
    if kind == "garbled":
        a, b = (a, draw.randint(0, 99)) if draw.random() < 0.5 else (draw.randint(0, 99), b)
    call = ToolCall(operation, {"a": a, "b": b})
    steps += [Step(Message(Role.ASSISTANT, calls=(call,))), result := result_of(call)]
    says(str(_near(environment.answer, draw)) if kind == "misquoted" else result.message.text)
    return Trajectory(steps)


def _near(answer: int, draw: random.Random) -> int:
    """A number of about the same size, which is another one."""
    spread = max(10, abs(answer) // 2)
    return answer + draw.choice((-1, 1)) * draw.randint(1, spread)


def generate(count: int = COUNT, seed: int = SEED) -> list[Trajectory]:
    """Generates `count` demonstrations."""
    return [demonstration(number, seed) for number in range(count)]


if __name__ == "__main__":
    for trajectory in generate():
        print(ours.write(trajectory))
