"""What an engine is asked, and what it answers. No JAX program is in this file: servers and graders can import it."""

import abc
import dataclasses
import enum
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from maverick_jax.inference.sampling import PLAIN, Sampling

MAX_TOP = 20
"""Most of the likeliest tokens that are reported in one place."""
MAX_STOPS = 16
"""Most stop ids of a request."""


class Finish(enum.StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """A stop id or a stop text."""
    LENGTH = "length"
    """`max_tokens` tokens were written."""
    CANCELLED = "cancelled"


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue. The tokens of the answer depend on these fields alone: not on the slot, on other requests,
    or on what was cached."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_tokens: int
    sampling: Sampling = PLAIN
    seed: int = 0
    """Token i of the answer is drawn with the key of (seed, i)."""
    stop_ids: frozenset[int] = frozenset()
    """The answer ends with the first of these, which is its last token."""
    stop_texts: tuple[str, ...] = ()
    """The answer ends when its decoded text holds one of these; its tokens may reach past the place."""
    tiles: np.ndarray | None = None
    """uint8[N, C, S, S]: tiles of the pictures whose `<|patch|>` tokens are in the prompt, in reading order."""
    marks: np.ndarray | None = None
    """uint8[n]: what the tokens of the prompt are to reasoning heads (`maverick_jax.reasoning.Mark`), as the renderer
    says; None: no token is marked."""
    log_probs: int | None = None
    """None: no log-probabilities; n: of each token written and of the n most likely ones in its place, of the model's
    distribution at temperature 1, before `sampling` changes it."""
    allowed: "TokenFilter | None" = None
    """Restricts each token of the answer, such as to a grammar."""
    session: str | None = None
    """Keys and values of prompt and answer are kept under this name, for the next request with it."""
    realm: str = ""
    """Cached keys and values are shared among requests of one realm only (a server's client, say)."""


class TokenFilter(abc.ABC):
    """Says which tokens may come next in one answer. Each request has its own, because it may have a state."""

    @abc.abstractmethod
    def mask(self, written: Sequence[int]) -> np.ndarray | None:
        """bool[V]: which tokens may follow `written`, the answer so far; None: all."""


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability, at temperature 1."""

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens in its place with their log-probabilities, most likely first."""


@dataclasses.dataclass(frozen=True)
class Update:
    """What is new in a generation."""

    tokens: tuple[int, ...]
    scores: tuple[TokenScore, ...] = ()
    """One per token if `GenerationRequest.log_probs` asked for them."""
    finish: Finish | None = None
    """In the last update only."""
    cached_tokens: int = 0
    """In the first update: how many tokens of the prompt were not computed again."""


class Generation:
    """A request under way. The thread of the engine calls `put`; any one other thread iterates or asks for `result`."""

    def __init__(self, request: GenerationRequest):
        self.request = request
        self._updates: queue.SimpleQueue[Update | BaseException] = queue.SimpleQueue()
        self._listener: Callable[[Update | BaseException], None] | None = None
        self._lock = threading.Lock()
        self._cancelled = False
        self._seen: list[Update] = []

    def put(self, update: Update | BaseException) -> None:
        """For engines: the next update, or the error that ended the generation."""
        with self._lock:
            if self._listener is None:
                self._updates.put(update)
            else:
                self._listener(update)

    def listen(self, listener: Callable[[Update | BaseException], None]) -> None:
        """Instead of iterating: `listener` is called with each update, those before this call included, mostly by the
        engine's thread. It must return at once and raise nothing."""
        with self._lock:
            self._listener = listener
            while not self._updates.empty():
                listener(self._updates.get())

    def __iter__(self) -> Iterator[Update]:
        """Yields updates as they come; the last one has a `finish`. Each is yielded once. Raises what ended the
        generation, if it failed."""
        while not (self._seen and self._seen[-1].finish):
            update = self._updates.get()
            if isinstance(update, BaseException):
                self._updates.put(update)
                raise update
            self._seen.append(update)
            yield update

    def result(self) -> Update:
        """Waits for the end: all updates as one, also those that were yielded before."""
        for _ in self:
            pass
        updates = self._seen
        tokens = tuple(token for update in updates for token in update.tokens)
        scores = tuple(score for update in updates for score in update.scores)
        return Update(tokens, scores, updates[-1].finish, updates[0].cached_tokens)

    def cancel(self) -> None:
        """Asks for the end: the generation finishes as CANCELLED within one step of the engine."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled


@dataclasses.dataclass(frozen=True)
class EngineStatus:
    """What an engine does now, and what it has done since it started."""

    slots: int
    active: int
    """Slots in use."""
    queued: int
    prompt_tokens: int
    """Tokens of prompts computed; those that were cached are counted in `cached_tokens`."""
    cached_tokens: int
    generated_tokens: int
    finished: Mapping[Finish, int]
    compilations: int
    """Programs compiled after the start; 0 unless something is wrong."""
    cache_bytes: int
    """Bytes of keys and values that are kept for sessions and prefixes."""


class Engine(abc.ABC):
    """Continues and scores texts. Methods may be called from any thread. An engine is also a context manager, and ends
    with it."""

    vocab_size: int
    context: int
    """Maximum number of tokens of prompt and answer together."""

    @abc.abstractmethod
    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        """Queues `n` generations of one prompt, with the seeds seed, seed + 1, ...; returns at once. Raises InputError
        for a request that can never run (ids out of range, more tokens than `context`), and QueueFull."""

    @abc.abstractmethod
    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        """Log-probabilities of given tokens: for each sequence those of all tokens but the first, with the `top` most
        likely ones in each place. Waits. Raises InputError as `submit` does."""

    @abc.abstractmethod
    def status(self) -> EngineStatus: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Cancels what runs, waits for the engine's thread and frees its memory."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
