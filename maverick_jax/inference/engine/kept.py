"""Texts whose keys and values are kept after they end, so that texts that begin alike need not compute them again.

A kept text of m tokens has all keys of the layers with global attention, and the newest C positions of those with local
attention (C: the chunk, or the window). A text that shares its first n tokens goes on from there if nothing older than
the C kept positions is needed; otherwise from the last border of a chunk, at which these layers need no older keys.
"""

import collections
import dataclasses
from typing import Generic, TypeVar

import numpy as np

S = TypeVar("S")


@dataclasses.dataclass(frozen=True)
class KeptText(Generic[S]):
    """A text, and a copy of what its slot held."""

    realm: str
    session: str | None
    identity: np.ndarray
    """int64[m]: equal numbers stand for equal inputs."""
    snapshot: S
    bytes: int


@dataclasses.dataclass(frozen=True)
class Reach:
    """Which earlier keys the layers with local attention need."""

    size: int | None
    """Positions of a chunk or of a window; None: there is no local attention."""
    window: bool

    def resumable(self, shared: int, kept: int) -> int:
        """From which position a text goes on that shares `shared` tokens with a kept text of `kept` tokens."""
        if shared == kept or self.size is None or kept <= self.size:
            return shared
        if self.window:
            return shared if shared >= kept - 1 else 0
        border = shared - shared % self.size
        return shared if border >= kept - self.size else border


class KeptTexts(Generic[S]):
    """Kept texts of at most `limit` bytes. The one that was not used for longest goes first."""

    def __init__(self, limit: int, reach: Reach):
        self.limit, self.reach = limit, reach
        self._texts: collections.OrderedDict[int, KeptText[S]] = collections.OrderedDict()
        self._added = 0
        self.bytes = 0

    def find(self, realm: str, identity: np.ndarray) -> tuple[KeptText[S], int] | None:
        """The kept text of the realm with which a text of this identity shares most, and how many tokens of it need not
        be computed; all of them only if the kept text is the same. None: none."""
        best = None
        for number, text in self._texts.items():
            if text.realm != realm:
                continue
            shared = _shared(text.identity, identity)
            if shared == len(identity) and shared < len(text.identity):
                shared -= 1  # the logits after it are not kept
            count = self.reach.resumable(shared, len(text.identity))
            if count and (best is None or count >= best[1]):
                best = number, count
        if best is None:
            return None
        self._texts.move_to_end(best[0])
        return self._texts[best[0]], best[1]

    def make_room(self, realm: str, session: str | None, identity: np.ndarray, size: int) -> bool:
        """Whether a text of `size` bytes is to be kept; drops what it replaces: the same text, the last of its session,
        and those that were not used for longest."""
        if size > self.limit:
            return False
        for number, text in list(self._texts.items()):
            same = session is not None and (text.realm, text.session) == (realm, session)
            if same or (text.realm == realm and np.array_equal(text.identity, identity)):
                self._drop(number)
        while self.bytes + size > self.limit:
            self._drop(next(iter(self._texts)))
        return True

    def add(self, text: KeptText[S]) -> None:
        """Keeps a text for which there is room."""
        self._added += 1
        self._texts[self._added] = text
        self.bytes += text.bytes

    def clear(self) -> None:
        """Drops all texts."""
        self._texts.clear()
        self.bytes = 0

    def _drop(self, number: int) -> None:
        self.bytes -= self._texts.pop(number).bytes

    def __len__(self) -> int:
        return len(self._texts)


def _shared(one: np.ndarray, other: np.ndarray) -> int:
    """How many first entries are equal."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length
