"""An engine whose answers and scores a test states."""

from collections.abc import Callable, Sequence

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenScore,
    Update,
)


class ScriptedEngine(Engine):
    """Answers each prompt with `answer(prompt)` (token ids) and scores each token with `score_of(before, token)`."""

    def __init__(
        self,
        answer: Callable[[Sequence[int]], Sequence[int]] = lambda prompt: [],
        score_of: Callable[[Sequence[int], int], float] = lambda before, token: -1.0,
        vocab_size: int = 288,
        context: int = 1 << 16,
    ):
        self.answer, self.score_of, self.vocab_size, self.context = answer, score_of, vocab_size, context
        self.requests: list[GenerationRequest] = []
        self.scored: list[list[int]] = []

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        if len(request.prompt) + request.max_tokens > self.context:
            raise InputError(f"{len(request.prompt)} tokens and {request.max_tokens} more; expected {self.context}")
        found = []
        for _ in range(n):
            self.requests.append(request)
            ids = list(self.answer(request.prompt))
            finish = Finish.STOP if set(ids[-1:]) & request.stop_ids else Finish.LENGTH
            generation = Generation(request)
            generation.put(Update(tuple(ids[: request.max_tokens]), finish=finish))
            found.append(generation)
        return found

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        self.scored += [list(sequence) for sequence in sequences]
        return [[self._score(sequence, i, top) for i in range(1, len(sequence))] for sequence in sequences]

    def _score(self, sequence: Sequence[int], i: int, top: int) -> TokenScore:
        own = self.score_of(sequence[:i], sequence[i])
        return TokenScore(sequence[i], own, ((sequence[i], own),) if top else ())

    def status(self) -> EngineStatus:
        """All that was asked is answered at once."""
        none = dict.fromkeys(Finish, 0)
        return EngineStatus(1, 0, 0, 0, 0, 0, none, compilations=0, cache_bytes=0)

    def close(self) -> None:
        pass
