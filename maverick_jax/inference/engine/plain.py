"""The plain engine: groups of answers that begin together, and scores by the ordinary forward pass, in the thread that
waits for them.

It evaluates a model in the middle of its training: it compiles few programs, which later evaluations find again, takes
no memory while nothing runs, and copies no layer of the model."""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import checks, group, programs
from maverick_jax.inference.engine.beginnings import Beginning, beginning_of
from maverick_jax.inference.engine.forward import Scanned, SlotCache, encoded
from maverick_jax.inference.engine.jobs import Answer
from maverick_jax.inference.engine.latents import undrawn
from maverick_jax.inference.engine.lengths import bucket, device_groups
from maverick_jax.inference.engine.marks import require_marks
from maverick_jax.inference.engine.pictures import Pictures
from maverick_jax.inference.engine.programs import Slots
from maverick_jax.inference.engine.requests import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenScore,
    Update,
)
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer

AT_A_TIME = 8
"""Most answers that are written together."""
STEPS = 8
"""Steps that are computed before tokens are looked at."""
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
        self._waiting: list[Answer] = []
        self._counts = collections.Counter[str]()
        self._finished = dict.fromkeys(Finish, 0)

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        checks.require_request(request, self.vocab_size, self.context, has_tokenizer=True)
        for name in ("allowed", "session"):
            if getattr(request, name) is not None:
                raise InputError(f"{name}: the plain engine does not support it; expected null")
        checks.require_no_latents(request.prompt, self.model.config, "prompt: the plain engine")
        require_marks(self.model.config, request.marks, len(request.prompt))
        request, seeds = undrawn(request, self.model.config), range(request.seed, request.seed + n)
        found = []
        for seed in seeds:
            pictures = None
            if request.tiles is not None:
                pictures = Pictures(self.model.config, np.asarray(request.prompt), np.asarray(request.tiles))
            generation = _Waiting(dataclasses.replace(request, seed=seed), self)
            found.append(Answer(generation, self.tokenizer, pictures=pictures))
        self._waiting += found
        return [job.generation for job in found]

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        checks.require_top(top, "top")
        for i, sequence in enumerate(sequences):
            checks.require_tokens(sequence, self.vocab_size, f"sequence {i}")
            if len(sequence) > self.context:
                raise InputError(f"sequence {i}: {len(sequence):,} tokens; expected at most {self.context:,}")
        return [self._score(list(sequence), top) for sequence in sequences]

    def _score(self, sequence: list[int], top: int) -> list[TokenScore]:
        mesh, rows = self.model.embed[...].sharding.mesh, device_groups(self.model)
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
        for job in self._waiting:
            job.abort(None)
        self._waiting = []

    def run(self) -> None:
        """Runs all that waits, shortest prompts first."""
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda job: job.total)
        for i in range(0, len(waiting), AT_A_TIME):
            self._write(waiting[i : i + AT_A_TIME])

    def _write(self, jobs: list[Answer]) -> None:
        """The answers of a group. Rows are repeated, so that all groups have one size, which the devices divide."""
        groups, left = device_groups(self.model), list(jobs)
        rows = [jobs[i % len(jobs)] for i in range(-(-AT_A_TIME // groups) * groups)]
        tokens = np.zeros((len(rows), bucket(max(job.total for job in rows))), np.int32)
        for row, job in zip(tokens, rows, strict=True):
            row[: job.total] = job.tokens
        lengths = np.asarray([job.total for job in rows], np.int32)
        asked = [job.generation.request for job in rows]
        first = jax.tree.map(lambda *x: np.stack(x), *(beginning_of(r, r.seed, self.vocab_size) for r in asked))
        context = bucket(max(job.total + r.max_tokens for job, r in zip(rows, asked, strict=True)))
        for i, job in enumerate(jobs):
            job.slot = i
        with jax.set_mesh(self.model.embed[...].sharding.mesh):
            model = Scanned.of(self.model)
            seen, marks = self._seen(model, rows, tokens.shape), self._marks(rows, tokens.shape)
            cache, slots = _begun(model, tokens, lengths, first, context, seen, marks)
            left = [job for job in left if not self._ended(job, self._empty(job))]
            while left:
                cache, slots, steps = _decode(model, cache, slots, STEPS)
                found = jax.device_get(steps)
                left = [job for job in left if not self._ended(job, job.add(found))]

    def _seen(self, model: Scanned, rows: Sequence[Answer], shape: tuple[int, ...]) -> group.ShownPictures | None:
        """What the prompts show, [B, P]; None: no pictures."""
        if not any(job.pictures for job in rows):
            return None
        config, count = self.model.config, device_groups(self.model)
        seen = group.ShownPictures(np.zeros(shape, bool), np.zeros((*shape, config.hidden_size), config.compute_dtype))
        for i, job in enumerate(rows):
            if job.pictures is None:
                continue
            while job.pictures.left:
                job.pictures.add(np.asarray(_encoded(model, job.pictures.next_pixels(count))))
            places, features = job.pictures.rows(0, job.total)
            seen.shown[i, places], seen.features[i, places] = True, features
        return seen

    def _marks(self, rows: Sequence[Answer], shape: tuple[int, ...]) -> np.ndarray | None:
        """uint8[B, P]: what prompts are to reasoning heads; None: the model has none."""
        if self.model.config.reasoning_heads is None:
            return None
        found = np.zeros(shape, np.uint8)
        for row, job in zip(found, rows, strict=True):
            row[: job.total] = job.marks
        return found

    def _empty(self, job: Answer) -> Finish | None:
        return None if job.generation.request.max_tokens else Finish.LENGTH

    def _ended(self, job: Answer, finish: Finish | None) -> bool:
        """Whether an answer is over. If it is, its requester is told, and its tokens are counted."""
        finish = Finish.CANCELLED if job.generation.cancelled else finish
        if finish is None:
            return False
        self._counts["prompt"] += job.total
        self._counts["generated"] += len(job.written)
        self._finished[finish] += 1
        job.generation.put(job.update(finish))
        return True

    def waits(self, generation: Generation) -> bool:
        """Whether a generation has not run yet."""
        return any(job.generation is generation for job in self._waiting)


class _Waiting(Generation):
    """A generation that runs, with all others that wait, when it is iterated."""

    def __init__(self, request: GenerationRequest, engine: PlainEngine):
        super().__init__(request)
        self.engine = engine

    def __iter__(self) -> Iterator[Update]:
        if self.engine.waits(self):
            self.engine.run()
        return super().__iter__()


@functools.partial(jax.jit, static_argnames="context")
def _begun(
    model: Scanned, tokens, lengths, first: Beginning, context: int, seen: group.ShownPictures | None, marks
) -> tuple[SlotCache, Slots]:
    slots = group.slots_of(first, model.rest.config, model.rest.rules)
    return group.begun(model, tokens, lengths, slots, context, seen, marks)


_encoded = jax.jit(encoded)
_decode = jax.jit(programs.decode, static_argnames="count", donate_argnames=("cache", "slots"))


@functools.partial(jax.jit, static_argnames="top")
def _likely(logits: jax.Array, labels: jax.Array, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities float32[B, T] of `labels` int32[B, T], and the `top` highest with their tokens, [B, T, top]."""
    log_probs = jax.nn.log_softmax(reshard(logits, PartitionSpec(None, None, None)), axis=-1)
    best, ids = jax.lax.top_k(log_probs, top)
    return jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0], best, ids
