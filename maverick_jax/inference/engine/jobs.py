"""What one slot of an engine works at: an answer, or the scores of a text."""

import abc
import concurrent.futures
import itertools

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.inference.decoding import TextDecoder
from maverick_jax.inference.engine.pictures import Pictures
from maverick_jax.inference.engine.programs import Snapshot, Steps
from maverick_jax.inference.engine.requests import Finish, Generation, TokenScore, Update
from maverick_jax.ops.token_scores import ScoredTokens
from maverick_jax.text import Tokenizer

_numbers = itertools.count()


class Job(abc.ABC):
    """A text whose tokens are computed in one slot."""

    def __init__(self, tokens: np.ndarray, total: int):
        self.tokens, self.total = tokens, total
        """int32[n], of which the first `total` are computed."""
        self.number = next(_numbers)
        """In the order in which jobs came."""
        self.slot: int = -1
        self.position = 0
        """Number of tokens that are computed."""

    @property
    def left(self) -> int:
        return self.total - self.position

    @property
    def computed(self) -> bool:
        return self.left == 0

    def leads(self) -> bool:
        """Whether it is computed in its own slot."""
        return True

    @abc.abstractmethod
    def abort(self, error: BaseException | None) -> None:
        """Ends it early: with `error`, or because the engine closes."""


class Scoring(Job):
    """Scores of all tokens of a text but the first."""

    def __init__(self, tokens: np.ndarray, top: int):
        super().__init__(tokens, len(tokens) - 1)
        self.top, self.done = top, concurrent.futures.Future[list[TokenScore]]()
        self._found: list[TokenScore] = []
        if not self.total:
            self.finish()

    def add(self, scores: ScoredTokens) -> None:
        """The scores of the next tokens, [n]."""
        first = len(self._found) + 1
        for i, log_prob in enumerate(scores.log_probs.tolist()):
            top = _top(scores.top_ids[i], scores.top_log_probs[i], self.top)
            self._found.append(TokenScore(int(self.tokens[first + i]), log_prob, top))

    def finish(self) -> None:
        self.done.set_result(self._found)

    def abort(self, error: BaseException | None) -> None:
        self.done.set_exception(error or InputError("the engine was closed"))


class SharedPrompt:
    """The prompt of several answers: the first of them that has a slot computes it, the others get copies."""

    def __init__(self):
        self.leader: Answer | None = None
        self.snapshot: Snapshot | None = None


class Answer(Job):
    """A generation."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer | None,
        shared: SharedPrompt | None = None,
        pictures: Pictures | None = None,
    ):
        request = generation.request
        super().__init__(np.asarray(request.prompt, np.int32), len(request.prompt))
        self.generation, self.begun, self.restricted, self.shared = generation, False, False, shared
        self.marks = np.zeros(self.total, np.uint8) if request.marks is None else request.marks
        """uint8[n]: what the tokens of the prompt are to reasoning heads."""
        self.identity, self.pictures = self.tokens.astype(np.int64) | self.marks.astype(np.int64) << 40, pictures
        if pictures is not None:
            pictures.mark(self.identity)
        self.written: list[int] = []
        self.cached = 0
        """Tokens of the prompt that were not computed again."""
        self.new = 0
        """Tokens that the last `add` wrote."""
        self.goes_on = False
        """Whether the device would write on after the end."""
        self._beyond: list[int] = []
        """Tokens that the device has written after the end."""
        self._scores: list[TokenScore] = []
        self._reported = 0
        self._stops = StopTexts(request.stop_texts, tokenizer) if request.stop_texts and tokenizer else None

    def leads(self) -> bool:
        if self.shared is None or self.shared.snapshot is not None:
            return True
        self.shared.leader = self.shared.leader or self
        return self.shared.leader is self

    def ended(self) -> None:
        """Another answer computes the prompt if this one has not."""
        if self.shared is not None and self.shared.leader is self:
            self.shared.leader = None

    def identity_so_far(self) -> np.ndarray:
        """int64[m]: what the slot holds, prompt and answer."""
        return np.concatenate([self.identity, np.asarray([*self.written, *self._beyond], np.int64)])

    @property
    def filtered(self) -> bool:
        return self.generation.request.allowed is not None

    @property
    def scored(self) -> bool:
        return self.generation.request.log_probs is not None

    def allowed_next(self, vocab_size: int) -> np.ndarray | None:
        """bool[V]: which tokens may come next; None: all. Raises InputError for a mask that excludes all."""
        found = self.generation.request.allowed
        mask = None if found is None else found.mask(self.written)
        if mask is None:
            return None
        whole = np.zeros(vocab_size, bool)
        whole[: len(mask)] = mask[:vocab_size]
        if not whole.any():
            raise InputError(f"the filter allows no token after {len(self.written)} tokens of the answer")
        return whole

    def add(self, steps: Steps) -> Finish | None:
        """Takes the tokens of this slot, and reports them unless they end the answer; why it ends, if it does."""
        request, written = self.generation.request, 0
        tokens = steps.tokens[:, self.slot].tolist()
        finish = None
        for i, token in enumerate(token for token in tokens if token >= 0):
            if finish is not None:
                self._beyond.append(token)
                continue
            written += 1
            self.written.append(token)
            if self.scored:
                s = steps.scores
                top = _top(s.top_ids[i, self.slot], s.top_log_probs[i, self.slot], request.log_probs or 0)
                self._scores.append(TokenScore(token, float(s.log_probs[i, self.slot]), top))
            by_text = self._stops is not None and self._stops.add(token)
            if by_text or token in request.stop_ids:
                finish = Finish.STOP
            elif len(self.written) == request.max_tokens:
                finish = Finish.LENGTH
            self.goes_on = by_text and token not in request.stop_ids and len(self.written) < request.max_tokens
        self.new = written
        if finish is None and written:
            self.generation.put(self.update(None))
        return finish

    def update(self, finish: Finish | None) -> Update:
        """All that was not reported yet."""
        first = self._reported == 0
        tokens, scores = tuple(self.written[self._reported :]), tuple(self._scores[self._reported :])
        self._reported = len(self.written)
        return Update(tokens, scores, finish, self.cached if first else 0)

    def abort(self, error: BaseException | None) -> None:
        self.generation.put(self.update(Finish.CANCELLED) if error is None else error)


class StopTexts:
    """Looks for texts in an answer while it is written."""

    def __init__(self, texts: tuple[str, ...], tokenizer: Tokenizer):
        self._texts, self._decoder = texts, TextDecoder(tokenizer)
        self._tail, self._longest = "", max(map(len, texts))

    def add(self, token: int) -> bool:
        """Whether one of the texts is in the answer now."""
        if not (new := self._decoder.add(token)):
            return False
        tail = self._tail + new
        self._tail = tail[-(self._longest - 1) :] if self._longest > 1 else ""
        return any(text in tail for text in self._texts)


def _top(ids: np.ndarray, log_probs: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    return tuple(zip(ids[:count].tolist(), log_probs[:count].tolist(), strict=True))
