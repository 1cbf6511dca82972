"""The plain engine: whole prompts, groups of answers, and scores by the ordinary forward pass, in the calling thread.

It is what a faster engine is compared with, and what evaluates a model in the middle of its training, because it works
on any model and mesh as they are and keeps no memory between requests."""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from maverick_jax.errors import InputError
from maverick_jax.inference.engine.requests import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenScore,
    Update,
)
from maverick_jax.inference.sampler import bucket, sample_tokens
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import axes_tuple
from maverick_jax.text import Tokenizer

AT_A_TIME = 8
"""Most answers that are written together."""
DEFAULT_CONTEXT = 1 << 20


class PlainEngine(Engine):
    """An engine without a thread: generations run when the first of them is waited for."""

    def __init__(self, model: Maverick, tokenizer: Tokenizer, context: int = DEFAULT_CONTEXT):
        """Raises InputError if the tokenizer has more ids than the model."""
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.vocab_size = model.config.vocab_size
        if tokenizer.vocab_size > self.vocab_size:
            sizes = f"{tokenizer.vocab_size} ids, the model {self.vocab_size}"
            raise InputError(f"the tokenizer has {sizes}; expected the tokenizer of this model")
        self._waiting: list[_Waiting] = []
        self._prompt_tokens = self._generated = 0
        self._finished = dict.fromkeys(Finish, 0)

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        self._check(request.prompt, request.max_tokens)
        given = {"tiles": request.tiles, "log_probs": request.log_probs, "allowed": request.allowed,
                 "session": request.session}  # fmt: skip
        if (unknown := [name for name, value in given.items() if value is not None]) or request.sampling.extras():
            name = [*unknown, *request.sampling.extras()][0]
            raise InputError(f"{name}: the plain engine does not support it; expected its default")
        found = [_Waiting(request, (request.seed + i) % 2**32, self) for i in range(n)]
        self._waiting += found
        return list(found)

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        for sequence in sequences:
            self._check(sequence, 0)
        return [self._score(list(sequence), top) for sequence in sequences]

    def _score(self, sequence: list[int], top: int) -> list[TokenScore]:
        mesh = self.model.embed[...].sharding.mesh
        rows = int(np.prod([mesh.shape[axis] for axis in axes_tuple(self.model.rules.batch)]))
        n, length = len(sequence), bucket(len(sequence))
        tokens, segments = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.int32)
        tokens[:, :n], segments[:, :n] = sequence, 1
        with jax.set_mesh(mesh):
            logits = self.model.logits(tokens, segment_ids=segments)
            labels = np.zeros((rows, length), np.int32)
            labels[:, : n - 1] = sequence[1:]
            own, best, ids = jax.device_get(_likely(logits, labels, max(top, 1)))
        self._prompt_tokens += n
        found = []
        for i, token in enumerate(sequence[1:]):
            likeliest = zip(ids[0, i, :top].tolist(), best[0, i, :top].tolist(), strict=True)
            found.append(TokenScore(token, float(own[0, i]), tuple(likeliest)))
        return found

    def status(self) -> EngineStatus:
        waiting = len(self._waiting)
        return EngineStatus(
            AT_A_TIME, 0, waiting, self._prompt_tokens, 0, self._generated, dict(self._finished), 0, 0
        )

    def close(self) -> None:
        for one in self._waiting:
            one.put(Update((), finish=Finish.CANCELLED))
        self._waiting = []

    def _check(self, tokens: Sequence[int], more: int) -> None:
        if not tokens or more < 0:
            raise InputError("expected a prompt of one token or more, and max_tokens of 0 or more")
        if len(tokens) + more > self.context:
            raise InputError(f"{len(tokens):,} tokens and {more:,} more; expected at most {self.context:,}, the context")
        if any(not 0 <= token < self.vocab_size for token in tokens):
            raise InputError(f"token ids outside 0..{self.vocab_size - 1}, the model's vocabulary")

    def run(self) -> None:
        """Runs all that waits. Greedy answers of equal length limits are written together, shortest prompts first."""
        waiting, self._waiting = self._waiting, []
        greedy = [one for one in waiting if one.request.sampling.temperature == 0]
        groups = [[one] for one in waiting if one.request.sampling.temperature != 0]
        for limit in sorted({one.request.max_tokens for one in greedy}):
            equal = sorted((o for o in greedy if o.request.max_tokens == limit), key=lambda o: len(o.request.prompt))
            groups += [equal[i : i + AT_A_TIME] for i in range(0, len(equal), AT_A_TIME)]
        for group in groups:
            self._write(group)

    def _write(self, group: "list[_Waiting]") -> None:
        first = group[0]
        prompts = [list(one.request.prompt) for one in group]
        limit, open_ones = first.request.max_tokens, list(group)
        finishes = dict.fromkeys(map(id, group), Finish.LENGTH)
        for tokens in sample_tokens(self.model, prompts, limit, first.request.sampling, first.seed):
            for one, token in zip(group, tokens.tolist(), strict=True):
                if one in open_ones:
                    one.tokens.append(token)
                    if one.cancelled or self._ends(one):
                        finishes[id(one)] = Finish.CANCELLED if one.cancelled else Finish.STOP
                        open_ones.remove(one)
            if not open_ones:
                break
        for one in group:
            self._prompt_tokens += len(one.request.prompt)
            self._generated += len(one.tokens)
            self._finished[finishes[id(one)]] += 1
            one.put(Update(tuple(one.tokens), finish=finishes[id(one)]))

    def _ends(self, one: "_Waiting") -> bool:
        if one.tokens[-1] in one.request.stop_ids:
            return True
        longest = max((len(text.encode()) for text in one.request.stop_texts), default=0)
        tail = self.tokenizer.decode(one.tokens[-longest - 4 :]) if longest else ""
        return any(text in tail for text in one.request.stop_texts)


class _Waiting(Generation):
    """A generation that runs, with all others that wait, when it is iterated."""

    def __init__(self, request: GenerationRequest, seed: int, engine: PlainEngine):
        super().__init__(request)
        self.seed, self.engine, self.tokens = seed, engine, list[int]()

    def __iter__(self) -> Iterator[Update]:
        if self in self.engine._waiting:
            self.engine.run()
        return super().__iter__()


@functools.partial(jax.jit, static_argnames="top")
def _likely(logits: jax.Array, labels: jax.Array, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities float32[B, T] of `labels` int32[B, T], and the `top` highest with their tokens, [B, T, top]."""
    log_probs = jax.nn.log_softmax(reshard(logits, PartitionSpec(None, None, None)), axis=-1)
    best, ids = jax.lax.top_k(log_probs, top)
    return jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0], best, ids
