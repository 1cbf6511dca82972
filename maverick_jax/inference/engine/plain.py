"""The plain engine: groups of answers by prefill and decode, and scores by the ordinary forward pass, in the thread
that waits for them.

It writes the likeliest tokens only. It evaluates a model in the middle of its training: it compiles few programs, which
later evaluations find again, takes no memory while nothing runs, and works on any mesh without shared rows."""

import collections
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import checks
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
        self._counts = collections.Counter[str]()
        self._finished = dict.fromkeys(Finish, 0)

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        checks.require_request(request, self.vocab_size, self.context, has_tokenizer=True)
        unknown = [name for name in ("log_probs", "allowed", "session", "tiles") if getattr(request, name) is not None]
        for name in [*unknown, *request.sampling.extras()]:
            raise InputError(f"{name}: the plain engine does not support it; expected its default")
        if request.sampling.temperature:
            given = request.sampling.temperature
            raise InputError(f"temperature: {given:g}; the plain engine writes the likeliest tokens; expected 0")
        found = [_Waiting(request, self) for _ in range(n)]
        self._waiting += found
        return list(found)

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        checks.require_top(top, "top")
        for i, sequence in enumerate(sequences):
            checks.require_tokens(sequence, self.vocab_size, f"sequence {i}")
            if len(sequence) > self.context:
                raise InputError(f"sequence {i}: {len(sequence):,} tokens; expected at most {self.context:,}")
        return [self._score(list(sequence), top) for sequence in sequences]

    def _score(self, sequence: list[int], top: int) -> list[TokenScore]:
        mesh = self.model.embed[...].sharding.mesh
        rows = int(np.prod([mesh.shape[axis] for axis in axes_tuple(self.model.rules.batch)]))
        n, length = len(sequence), bucket(len(sequence))
        tokens, segments, labels = (np.zeros((rows, length), np.int32) for _ in range(3))
        tokens[:, :n], segments[:, :n], labels[:, : n - 1] = sequence, 1, sequence[1:]
        with jax.set_mesh(mesh):
            logits = self.model.logits(jnp.asarray(tokens), segment_ids=jnp.asarray(segments))
            own, best, ids = jax.device_get(_likely(logits, labels, max(top, 1)))
        self._counts["prompt"] += n
        found = []
        for i, token in enumerate(sequence[1:]):
            likeliest = zip(ids[0, i, :top].tolist(), best[0, i, :top].tolist(), strict=True)
            found.append(TokenScore(token, float(own[0, i]), tuple(likeliest)))
        return found

    def status(self) -> EngineStatus:
        counts = {"prompt_tokens": self._counts["prompt"], "generated_tokens": self._counts["generated"]}
        counts |= {"active": 0, "queued": len(self._waiting), "cached_tokens": 0, "compilations": 0, "cache_bytes": 0}
        return EngineStatus(AT_A_TIME, **counts, finished=dict(self._finished))

    def close(self) -> None:
        for one in self._waiting:
            one.put(Update((), finish=Finish.CANCELLED))
        self._waiting = []

    def run(self) -> None:
        """Runs all that waits. Answers of equal length limits are written together, shortest prompts first."""
        waiting, self._waiting = self._waiting, []
        for limit in sorted({one.request.max_tokens for one in waiting}):
            equal = sorted((o for o in waiting if o.request.max_tokens == limit), key=lambda o: len(o.request.prompt))
            for i in range(0, len(equal), AT_A_TIME):
                self._write(equal[i : i + AT_A_TIME])

    def _write(self, group: "list[_Waiting]") -> None:
        first = group[0].request
        prompts, unfinished = [list(one.request.prompt) for one in group], list(group)
        for tokens in sample_tokens(self.model, prompts, first.max_tokens, first.sampling):
            for one, token in zip(group, tokens.tolist(), strict=True):
                if one in unfinished:
                    one.tokens.append(token)
                    if one.cancelled or self._ends(one):
                        one.finish = Finish.CANCELLED if one.cancelled else Finish.STOP
                        unfinished.remove(one)
            if not unfinished:
                break
        for one in group:
            self._counts["prompt"] += len(one.request.prompt)
            self._counts["generated"] += len(one.tokens)
            self._finished[one.finish] += 1
            one.put(Update(tuple(one.tokens), finish=one.finish))

    def _ends(self, one: "_Waiting") -> bool:
        if one.tokens[-1] in one.request.stop_ids:
            return True
        longest = max((len(text.encode()) for text in one.request.stop_texts), default=0)
        tail = self.tokenizer.decode(one.tokens[-longest - 4 :]) if longest else ""
        return any(text in tail for text in one.request.stop_texts)

    def waits(self, one: "_Waiting") -> bool:
        """Whether a generation has not run yet."""
        return one in self._waiting


class _Waiting(Generation):
    """A generation that runs, with all others that wait, when it is iterated."""

    def __init__(self, request: GenerationRequest, engine: PlainEngine):
        super().__init__(request)
        self.engine, self.tokens, self.finish = engine, list[int](), Finish.LENGTH

    def __iter__(self) -> Iterator[Update]:
        if self.engine.waits(self):
            self.engine.run()
        return super().__iter__()


@functools.partial(jax.jit, static_argnames="top")
def _likely(logits: jax.Array, labels: jax.Array, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities float32[B, T] of `labels` int32[B, T], and the `top` highest with their tokens, [B, T, top]."""
    log_probs = jax.nn.log_softmax(reshard(logits, PartitionSpec(None, None, None)), axis=-1)
    best, ids = jax.lax.top_k(log_probs, top)
    return jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0], best, ids
