"""Latents in thoughts of trajectories: which steps, in one message, with which kinds; training writes what serving
reads."""

import numpy as np
import pytest

from data.latents import LatentSteps
from data.trajectories.kinds import TokenKind, token_kinds
from data.trajectories.latent_thoughts import steps_of, with_latents
from data.trajectories.trajectory import Step, Trajectory
from data.trajectories.weights import KindWeights, loss_weights
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, render

BYTES = load_tokenizer("bytes_thinking")
LATENT = BYTES.controls["<|reasoning_reserved_special_token_0|>"]
THOUGHT = "one\n\ntwo\nthree"


def trajectory(**last) -> Trajectory:
    turns = [Message(Role.USER, "hi"), Message(Role.ASSISTANT, "yo"), Message(Role.USER, "how")]
    answer = Message(Role.ASSISTANT, "so", **({"thought": THOUGHT} | last))
    return Trajectory(steps=tuple(map(Step, [*turns, answer])))


def test_the_first_steps_of_a_thought_become_latents():
    found = with_latents(trajectory(), 0, LatentSteps(replaced=2, per_step=3)).steps[-1].message
    assert (found.latents, found.thought) == (6, "three")
    whole = with_latents(trajectory(), 0, LatentSteps(replaced=9)).steps[-1].message
    assert (whole.latents, whole.thought) == (3, "")
    assert with_latents(trajectory(), 0, LatentSteps(replaced=0)) == trajectory()


def test_one_message_of_a_trajectory_has_latents_and_a_hash_decides_which():
    both = Trajectory(steps=tuple(map(Step, [
        Message(Role.USER, "a"), Message(Role.ASSISTANT, "b", thought="x"), Message(Role.USER, "c"),
        Message(Role.ASSISTANT, "d", thought="y"),
    ])))  # fmt: skip
    found = [with_latents(both, number, LatentSteps(replaced=1)).steps for number in range(30)]
    chosen = [[i for i, step in enumerate(steps) if step.message.latents] for steps in found]
    assert {tuple(places) for places in chosen} == {(1,), (3,)}


def test_a_trajectory_without_thoughts_stays():
    plain = trajectory(thought="")
    assert with_latents(plain, 0, LatentSteps(replaced=1)) is plain
    assert steps_of(" \n") == []


@pytest.mark.parametrize("weight", [None, 2.0])
def test_places_of_latents_are_never_learned(weight):
    """Not even where the message has a weight of its own; the end of a thought of latents alone neither."""
    steps = list(with_latents(trajectory(), 0, LatentSteps(replaced=3)).steps)
    steps[-1] = Step(steps[-1].message, weight=weight)
    made = Trajectory(steps=tuple(steps))
    rendered = render(made.conversation, BYTES)
    kinds, weights = token_kinds(made, rendered), loss_weights(made, rendered, KindWeights())
    (places,) = np.nonzero(rendered.ids == LATENT)
    assert places.size == 3 and (kinds[places] == TokenKind.LATENT).all()
    assert kinds[places[-1] + 1] == TokenKind.LATENT and kinds[places[0] - 1] == TokenKind.CONTROL
    np.testing.assert_array_equal(weights[[*places, places[-1] + 1]], 0)
    assert kinds[places[-1] + 2] == TokenKind.DECISION and weights[places[-1] + 2] == (weight or 1)


def test_a_thought_that_goes_on_as_text_ends_with_a_token_that_is_learned():
    made = with_latents(trajectory(), 0, LatentSteps(replaced=2))
    rendered = render(made.conversation, BYTES)
    kinds = token_kinds(made, rendered)
    end = int(np.flatnonzero(rendered.ids == BYTES.controls["<|reasoning_thinking_end|>"])[0])
    assert kinds[end] == TokenKind.CONTROL and BYTES.decode(rendered.ids[end - 5 : end]) == "three"


def test_serving_reads_what_training_writes():
    """The prompt of an answer with latents is how the trained conversation begins."""
    made = with_latents(trajectory(), 0, LatentSteps(replaced=3, per_step=2))
    trained = render(made.conversation, BYTES).ids.tolist()
    asked = Conversation([step.message for step in made.steps[:-1]])
    prompt = render(asked, BYTES, add_generation_prompt=True, latents=6).ids.tolist()
    assert trained[: len(prompt)] == prompt and BYTES.decode(trained[len(prompt) :]) == "so"


def test_only_an_assistant_has_latents():
    with pytest.raises(InputError, match="latents: -1; expected 0 to"):
        Message(Role.ASSISTANT, "x", latents=-1)
    with pytest.raises(InputError, match="user: only the assistant"):
        Message(Role.USER, "x", latents=1)
