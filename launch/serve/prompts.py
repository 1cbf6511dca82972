"""Messages of the chat API -> token ids and tiles."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.serve.errors import ApiError
from launch.serve.pictures import PictureReader, urls_of
from maverick_jax.errors import InputError
from maverick_jax.reasoning import Mark
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Conversation, Dialect, Image, Message, Role, Tool, render
from maverick_jax.text.chat.openai import message_from_openai, tools_from_openai


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the model reads."""

    ids: list[int]
    tiles: np.ndarray | None = None
    """uint8[N, C, S, S]"""
    image_tokens: int = 0
    latent_tokens: int = 0
    """Places of latent thoughts."""
    conversation: Conversation | None = None
    """What the ids say; None for a text that is no conversation."""
    marks: np.ndarray | None = None
    """uint8[n]: what the tokens are to reasoning heads; None: nothing."""


@dataclasses.dataclass(frozen=True)
class WrittenTurn:
    """Tokens of an assistant's message as the model wrote them, with its stop token. They are not tokenized again."""

    ids: tuple[int, ...]


class PromptMaker:
    """Makes prompts for one model."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect, pictures: PictureReader, latents: int = 0):
        """`latents`: latent thoughts before each answer."""
        self.tokenizer, self.dialect, self.pictures, self.latents = tokenizer, dialect, pictures, latents

    def messages(self, raw: Sequence[Mapping[str, Any]]) -> tuple[list[Message], np.ndarray | None]:
        """The messages and the tiles of their pictures, uint8[N, C, S, S]. Raises ApiError."""
        urls = [urls_of(message, f"messages.{i}") for i, message in enumerate(raw)]
        images, tiles = self.pictures.read([url for found in urls for url in found])
        left, messages = iter(images), []
        for i, message in enumerate(raw):
            try:
                messages.append(message_from_openai(message, left))
            except InputError as error:
                raise ApiError(400, f"messages.{i}: {error}", param=f"messages.{i}") from None
        return messages, tiles

    def tools(self, raw: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
        try:
            return tools_from_openai(raw)
        except InputError as error:
            raise ApiError(400, str(error), param="tools") from None

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        tiles: np.ndarray | None = None,
        written: Mapping[int, WrittenTurn] | None = None,
    ) -> Prompt:
        """The prompt for the next answer. `written`: index of a message -> what the model wrote. System messages at the
        beginning become one; results of calls are put in the order of the calls, which is how dialects say what answers
        what. Raises ApiError."""
        joined, dropped = _one_system(messages)
        try:
            conversation = Conversation(_results_in_order(joined), tools)
            rendered = render(
                conversation, self.tokenizer, self.dialect.name, add_generation_prompt=True, latents=self.latents
            )
        except InputError as error:
            raise ApiError(400, str(error), param="messages") from None
        image_tokens = sum(len(part.ids) for m in messages for part in m.parts if isinstance(part, Image))
        ids, marks = rendered.ids.tolist(), rendered.marks.tolist()
        for index, turn in sorted((written or {}).items(), reverse=True):
            places = np.flatnonzero((rendered.messages == index - dropped) & rendered.written)
            turned = slice(int(places[0]), int(places[-1]) + 1)
            ids[turned], marks[turned] = turn.ids, [Mark.NONE] * len(turn.ids)
        return Prompt(ids, tiles, image_tokens, self.latents, conversation, np.array(marks, np.uint8))


def _one_system(messages: Sequence[Message]) -> tuple[list[Message], int]:
    """The messages with one system message at most, and how many fewer they are."""
    count = next((i for i, message in enumerate(messages) if message.role is not Role.SYSTEM), len(messages))
    if count < 2:
        return list(messages), 0
    text = "\n\n".join(message.text for message in messages[:count])
    return [Message(Role.SYSTEM, text), *messages[count:]], count - 1


def _results_in_order(messages: Sequence[Message]) -> list[Message]:
    """The messages with the results after each message in the order of its calls, if all of them name their calls."""
    found = list(messages)
    for at, message in enumerate(found):
        end = next((i for i in range(at + 1, len(found)) if found[i].role is not Role.TOOL), len(found))
        order: dict[str | None, int] = {call.id: i for i, call in enumerate(message.calls) if call.id is not None}
        results = found[at + 1 : end]
        if order and all(result.call_id in order for result in results):
            found[at + 1 : end] = sorted(results, key=lambda result, order=order: order[result.call_id])
    return found
