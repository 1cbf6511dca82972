"""The calculator: its sums, its tools and its rewards, and the demonstrations that ship with it."""

import gzip

import pytest

from data.environments import CalculatorConfig
from data.sources.files import ASSETS
from data.trajectories import calculator
from data.trajectories.formats import ours
from maverick_jax.text.chat import Message, Role, ToolCall


def says(text: str) -> Message:
    return Message(Role.ASSISTANT, text)


def calls(name: str, **arguments) -> Message:
    return Message(Role.ASSISTANT, calls=(ToolCall(name, arguments),))


def test_equal_seeds_give_equal_sums_and_python_agrees_with_the_answer():
    for seed in range(20):
        one, other = (CalculatorConfig(sum_steps=3).make() for _ in range(2))
        text = one.reset(seed).steps[0].message.text
        assert text == other.reset(seed).steps[0].message.text
        assert one.answer == other.answer == eval(text)  # noqa: S307  digits and signs that this test made


def test_the_last_number_of_the_answer_counts():
    environment = CalculatorConfig().make()
    environment.reset(1)
    right = environment.answer
    for text, reward in (
        (f"{right}", 1),
        (f"0, or {right}.", 1),
        (f"{right}, or 100000", 0),
        ("none", 0),
        ("9" * 60, 0),
    ):
        outcome = environment.step(says(text)).outcome
        assert (outcome.reward, outcome.success) == (reward, bool(reward)), text


def test_tools_compute_and_answer_any_call():
    environment = CalculatorConfig().make()
    environment.reset(0)
    (found,) = environment.step(calls("multiply", a=12, b=-3)).steps
    assert (found.message.text, found.error) == ("-36", False)
    for wrong in (calls("divide", a=1, b=1), calls("add", a=1), calls("add", a="1", b=2), calls("add", a=True, b=2),
                  calls("multiply", a=10**15, b=1)):  # fmt: skip
        (found,) = environment.step(wrong).steps
        assert found.error and found.message.text.startswith("Error: ")


def test_tools_are_declared_unless_the_config_says_no():
    assert [tool.name for tool in CalculatorConfig().make().tools] == ["add", "subtract", "multiply"]
    assert CalculatorConfig(declare=False).make().tools == ()


def test_the_shipped_demonstrations_are_the_generated_ones():
    lines = gzip.decompress((ASSETS / "calculator.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(lines) == calculator.COUNT
    for number in (0, 1, 2, calculator.COUNT - 1):
        assert lines[number] == ours.write(calculator.demonstration(number))


def test_as_many_demonstrations_as_said_are_right():
    right = 0
    for number in range(400):
        environment = CalculatorConfig().make()
        environment.reset(calculator.FIRST_EPISODE + number)
        made = calculator.demonstration(number)
        right += environment.step(made.steps[-1].message).outcome.success
    assert right / 400 == pytest.approx(1 - calculator.GUESSED, abs=0.06)
