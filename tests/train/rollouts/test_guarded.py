"""An environment that hangs, raises or answers with nonsense costs its episode and nothing else."""

import threading

import pytest

from data.environments import CalculatorConfig, Feedback, Opening
from data.trajectories import Outcome, Step
from maverick_jax.text.chat import Message, Role, Tool
from train.rollouts.guarded import EnvironmentFailed, GuardedEnvironment

HELLO = Opening([Step(Message(Role.USER, "hello"))], "greet")
SAID = Message(Role.ASSISTANT, "hi")


class Hostile:
    """An environment whose answers are given."""

    name, tools = "hostile", ()

    def __init__(self, opening=HELLO, answer=None):
        self.opening, self.answer = opening, answer

    def reset(self, seed):
        return self.opening() if callable(self.opening) else self.opening

    def step(self, message):
        return self.answer() if callable(self.answer) else self.answer


def guarded(made, limit=None, most=100) -> GuardedEnvironment:
    return GuardedEnvironment(lambda: made, time_limit=limit, most_characters=most)


def raises():
    raise KeyError("no such thing")


def test_a_sound_environment_is_passed_through():
    plain, behind = CalculatorConfig().make(), guarded(CalculatorConfig().make(), limit=60)
    assert behind.tools == plain.tools and behind.name == "calculator"
    assert behind.reset(4) == Opening(list(plain.reset(4).steps), plain.reset(4).task)
    assert behind.step(SAID) == Feedback([], plain.step(SAID).outcome)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (raises, "KeyError"),
        (None, "NoneType; expected a Feedback"),
        (Feedback(), "neither a message nor an outcome"),
        (Feedback("text"), "messages are str"),
        (Feedback(["text"]), "messages are list"),
        (Feedback([Step(Message(Role.SYSTEM, "x"))]), "role system"),
        (Feedback([Step(Message(Role.ASSISTANT, "x"))]), "role assistant"),
        (Feedback(outcome=1.0), "float as the outcome"),
        (lambda: Feedback(outcome=Outcome(float("nan"))), "expected a finite number"),
        (lambda: Feedback([Step(Message("tool", "x"))]), "role: 'tool'"),
    ],
    ids=lambda x: None if callable(x) else str(x)[:20],
)
def test_what_is_wrong_is_said(answer, why):
    behind = guarded(Hostile(answer=answer))
    behind.reset(0)
    with pytest.raises(EnvironmentFailed, match=why):
        behind.step(SAID)


@pytest.mark.parametrize("opening", [None, Opening([], "t"), Opening(HELLO.steps, None), raises])
def test_an_opening_is_checked(opening):
    with pytest.raises(EnvironmentFailed):
        guarded(Hostile(opening)).reset(0)


def test_a_hang_ends_with_the_time_limit():
    never = threading.Event()
    behind = guarded(Hostile(answer=lambda: never.wait(60)), limit=0.5)
    behind.reset(0)
    with pytest.raises(EnvironmentFailed, match=r"no answer within 0\.5 seconds"):
        behind.step(SAID)
    never.set()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one():
    late, is_late = threading.Event(), threading.Event()

    def answer():
        late.wait(60)
        is_late.set()
        return Feedback([Step(Message(Role.TOOL, "late"))])

    behind = guarded(Hostile(answer=answer), limit=0.5)
    behind.reset(0)
    with pytest.raises(EnvironmentFailed, match="no answer within"):
        behind.step(SAID)
    late.set()
    assert is_late.wait(60)
    with pytest.raises(EnvironmentFailed, match="an earlier answer did not come"):
        behind.step(SAID)


def test_all_answers_come_from_one_thread_which_ends_with_the_environment():
    seen = []

    def answers():
        seen.append(threading.current_thread())
        return Feedback([Step(Message(Role.TOOL, "here"))])

    behind = guarded(Hostile(opening=lambda: answers() and HELLO, answer=answers), limit=60)
    behind.reset(0)
    behind.step(SAID)
    assert len(set(seen)) == 1 and seen[0] is not threading.current_thread()
    del behind
    seen[0].join(60)
    assert not seen[0].is_alive()


def test_a_result_of_ten_megabytes_is_cut_and_says_so():
    text = "x" * 10_000_000
    behind = guarded(Hostile(answer=Feedback([Step(Message(Role.TOOL, text), error=True)])), most=1000)
    behind.reset(0)
    (step,) = behind.step(SAID).steps
    assert step.message.text == "x" * 1000 + " [cut after 1,000 of 10,000,000 characters]"
    assert step.error and behind.cut == 1


def test_what_cannot_be_made_fails():
    with pytest.raises(EnvironmentFailed, match="KeyError"):
        GuardedEnvironment(raises, time_limit=None, most_characters=10)
    made = Hostile()
    made.tools = ("f",)
    with pytest.raises(EnvironmentFailed, match="another type than Tool"):
        guarded(made)
    made.tools = (Tool("f"),)
    assert guarded(made).tools == (Tool("f"),)
