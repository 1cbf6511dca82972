"""Prompts with worked examples (shots) before the question, as a conversation or as a text to continue."""

from collections.abc import Sequence

from data.graders.choices import LETTERS
from maverick_jax.text.chat import Conversation, Message, Role

Shots = Sequence[tuple[str, str]]
"""Questions with their answers."""


def chat_prompt(question: str, shots: Shots = (), system: str = "") -> Conversation:
    """A conversation that ends with the question; each shot is a turn of the user and one of the assistant."""
    messages = [Message(Role.SYSTEM, system)] if system else []
    for asked, answer in shots:
        messages += [Message(Role.USER, asked), Message(Role.ASSISTANT, answer)]
    return Conversation([*messages, Message(Role.USER, question)])


def text_prompt(question: str, shots: Shots = (), intro: str = "") -> str:
    """A text that ends with the question; an empty line separates the parts. An answer follows its question directly,
    so that it has to begin with the space between them."""
    parts = [intro] if intro else []
    parts += [question + answer for question, answer in shots]
    return "\n\n".join([*parts, question])


def lettered(choices: Sequence[str]) -> str:
    """Choices as lines `A. ...`."""
    return "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
