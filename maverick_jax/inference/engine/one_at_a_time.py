"""The slow twin of every engine: one request after the other, each token by a forward pass of the whole text."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig
from maverick_jax.images.preprocess import pixel_table
from maverick_jax.inference.engine import checks
from maverick_jax.inference.engine.latents import undrawn
from maverick_jax.inference.engine.requests import (
    Engine,
    EngineStatus,
    Finish,
    Generation,
    GenerationRequest,
    TokenScore,
    Update,
)
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.tiles import encoder_of
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer


class OneAtATime(Engine):
    """Computes a request when it is submitted, keeps nothing, and samples in NumPy. Texts are padded to one length, so
    that one program is compiled."""

    def __init__(self, model: Maverick, tokenizer: Tokenizer | None = None, context: int = 128):
        self._model, self._tokenizer = model, tokenizer
        self.vocab_size, self.context = model.config.vocab_size, context
        self._prompt_tokens = self._generated_tokens = 0
        self._finished = dict.fromkeys(Finish, 0)

    def submit(self, request: GenerationRequest, n: int = 1) -> list[Generation]:
        checks.require_request(request, self.vocab_size, self.context, self._tokenizer is not None)
        if n < 1:
            raise InputError(f"n: {n}; expected 1 or more")
        request = undrawn(request, self._model.config)
        generations = [Generation(dataclasses.replace(request, seed=request.seed + i)) for i in range(n)]
        for generation in generations:
            update = self._written(generation.request)
            generation.put(update)
            self._prompt_tokens += len(request.prompt)
            self._generated_tokens += len(update.tokens)
            self._finished[update.finish or Finish.STOP] += 1
        return generations

    def score(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
        checks.require_top(top, "top")
        found = []
        for i, tokens in enumerate(sequences):
            checks.require_tokens(tokens, self.vocab_size, f"sequence {i}")
            logits = self._logits(tokens)
            found.append([score_of(logits[i], token, top) for i, token in enumerate(list(tokens)[1:])])
        return found

    def status(self) -> EngineStatus:
        counts = {"prompt_tokens": self._prompt_tokens, "cached_tokens": 0, "generated_tokens": self._generated_tokens}
        return EngineStatus(1, 0, 0, **counts, finished=self._finished, compilations=0, cache_bytes=0)

    def close(self) -> None:
        pass

    def _logits(
        self, tokens: Sequence[int], tiles: np.ndarray | None = None, marks: np.ndarray | None = None
    ) -> np.ndarray:
        """float32[T, V]. `marks` uint8[n]: of the first tokens."""
        padded = np.zeros((1, self.context), np.int32)
        padded[0, : len(tokens)] = tokens
        real = (np.arange(self.context) < len(tokens)).astype(np.int32)[None]
        positions = np.arange(self.context, dtype=np.int32)[None] * real
        pixels = None
        if tiles is not None:
            table = pixel_table(ImageConfig.of(encoder_of(self._model.config)).normalization)
            pixels = jnp.asarray(table.take(tiles) if tiles.dtype == np.uint8 else tiles)
        arrays = map(jnp.asarray, (padded, positions, real))
        marked = np.zeros((1, self.context), np.int32)
        if marks is not None:
            marked[0, : len(marks)] = marks
        marked = jnp.asarray(marked) if self._model.config.reasoning_heads else None
        return np.asarray(self._model.logits(*arrays, pixel_values=pixels, marks=marked))[0]

    def _written(self, request: GenerationRequest) -> Update:
        written: list[int] = []
        scores: list[TokenScore] = []
        while len(written) < request.max_tokens:
            text = [*request.prompt, *written]
            logits = self._logits(text, request.tiles, request.marks)[len(text) - 1]
            changed = changed_logits(logits, request.sampling, request.prompt, written)
            if request.allowed is not None and (mask := request.allowed.mask(written)) is not None:
                changed = np.where(mask, changed, -np.inf)
            token = drawn(changed, request.sampling, request.seed, len(written))
            if request.log_probs is not None:
                scores.append(score_of(logits, token, request.log_probs))
            written.append(token)
            text = self._tokenizer.decode(written) if self._tokenizer and request.stop_texts else ""
            if token in request.stop_ids or any(stop in text for stop in request.stop_texts):
                return Update(tuple(written), tuple(scores), Finish.STOP)
        return Update(tuple(written), tuple(scores), Finish.LENGTH)


def changed_logits(logits: np.ndarray, s: Sampling, prompt: Sequence[int], written: Sequence[int]) -> np.ndarray:
    """Logits float32[V] with bias and penalties."""
    logits = logits.astype(np.float32).copy()
    for token, bias in s.logit_bias.items():
        logits[token] += np.float32(bias)
    for token in {*map(int, prompt), *written}:
        again = np.float32(s.repetition_penalty)
        logits[token] = logits[token] / again if logits[token] > 0 else logits[token] * again
    for token in set(written):
        count = np.float32(written.count(token))
        logits[token] -= np.float32(s.presence_penalty) + np.float32(s.frequency_penalty) * count
    return logits


def drawn(logits: np.ndarray, s: Sampling, seed: int, index: int) -> int:
    """Token `index` of an answer, from changed logits float32[V]."""
    if s.temperature == 0:
        return int(np.argmax(logits))
    scaled = logits / np.float32(s.temperature)
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    kept = np.ones(len(scaled), bool)
    order = np.argsort(-scaled, kind="stable")
    if 0 < s.top_k < len(scaled):
        kept &= scaled >= scaled[order[s.top_k - 1]]
    if s.top_p < 1:
        reached = np.searchsorted(np.cumsum(shares[order]), s.top_p)
        kept &= scaled >= scaled[order[min(int(reached), len(order) - 1)]]
    if s.min_p > 0:
        kept &= shares >= s.min_p * shares.max()
    key = jax.random.fold_in(jax.random.key(np.uint32(seed % 2**32)), index)
    noise = np.asarray(jax.random.gumbel(key, scaled.shape))
    return int(np.argmax(np.where(kept, scaled + noise, -np.inf)))


def score_of(logits: np.ndarray, token: int, top: int) -> TokenScore:
    """The log-probability of `token` by logits float32[V], and the `top` most likely tokens."""
    exact = logits.astype(np.float64)
    log_probs = exact - exact.max() - np.log(np.sum(np.exp(exact - exact.max())))
    best = np.argsort(-log_probs, kind="stable")[:top]
    return TokenScore(int(token), float(log_probs[token]), tuple((int(i), float(log_probs[i])) for i in best))
