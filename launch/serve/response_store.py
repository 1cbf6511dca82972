"""Responses that a later request can name by `previous_response_id`."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from launch.serve.prompts import WrittenTurn
from maverick_jax.text.chat import Message


@dataclasses.dataclass(frozen=True)
class KeptResponse:
    """A response, and the conversation up to its end."""

    shown: Mapping[str, Any]
    """The response as it was sent."""
    messages: tuple[Message, ...]
    """The conversation without instructions."""
    written: Mapping[int, WrittenTurn]
    """Index of a message -> its tokens as the model wrote them."""
    tiles: np.ndarray | None
    """uint8[N, C, S, S]: the tiles of all pictures."""
    session: str
    """Under this name the engine keeps the conversation's keys and values."""
    tokens: int
    """Tokens of the conversation; those of tiles are counted with their bytes."""


class ResponseStore:
    """The newest responses, within bounds. All is in memory and ends with the server."""

    def __init__(self, most: int, most_tokens: int):
        self.most, self.most_tokens, self.tokens = most, most_tokens, 0
        self._kept: collections.OrderedDict[str, KeptResponse] = collections.OrderedDict()

    def put(self, name: str, response: KeptResponse) -> None:
        self._kept[name] = response
        self.tokens += response.tokens
        while len(self._kept) > self.most or (self.tokens > self.most_tokens and len(self._kept) > 1):
            self.drop(next(iter(self._kept)))

    def get(self, name: str) -> KeptResponse | None:
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def drop(self, name: str) -> bool:
        """Whether it was there."""
        dropped = self._kept.pop(name, None)
        self.tokens -= dropped.tokens if dropped else 0
        return dropped is not None

    def __len__(self) -> int:
        return len(self._kept)
