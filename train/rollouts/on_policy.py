"""On-policy batches: samples of the model itself, which a teacher scores (GKD, arXiv 2306.13649).

A hash of the run's seed and the update's number decides, like a coin, whether an update is on-policy. So on-policy
updates follow no pattern that `logging.every` could hide, and they are the same in a resumed run and with another
number of processes. The batch is made from the data's batch for that update: the current model continues the beginning
of each row's first document. Shapes, dtypes and shardings equal those of the data's batch, so the step's program is the
same.
"""

import dataclasses
import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard
from pydantic import Field

from data.rows.fields import FIELDS
from maverick_jax.accounting.flops import NOTHING, flops_per_token
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.inference.engine.forward import Scanned
from maverick_jax.inference.engine.group import begun
from maverick_jax.inference.engine.marks import num_groups
from maverick_jax.inference.engine.programs import decode, empty_slots, next_tokens
from maverick_jax.model.transformer import Maverick
from maverick_jax.settings.section import Section
from train.rollouts.source import Batch, BatchSource, Setting

NO_TOKEN = -1


class OnPolicy(Section):
    """The share of updates that train on the student's own samples, and the settings of sampling."""

    share: Annotated[float, Field(gt=0, le=1)]
    """Expected fraction of on-policy updates (lambda in GKD). A hash of `run.seed` and the update's number decides for
    each update."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Maximum number of tokens that the student generates in each row; fewer if it ends the text."""
    prompt_tokens: Annotated[int, Field(ge=1)]
    """Maximum number of prompt tokens: the beginning of the row's first document, without its end token."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Temperature of sampling; 0: always the most likely token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Samples from the most likely tokens whose total probability first reaches this value; 1: from all."""

    def draws(self, seed: int, update: int) -> np.uint32 | None:
        """The sampling seed of a run's update number `update`, from 1; None if the update trains on the data."""
        coin, draws = np.random.SeedSequence([seed, update]).generate_state(2)
        return draws if int(coin) < self.share * 2**32 else None

    def open(self, data: BatchSource, setting: Setting) -> BatchSource:
        """`data` with some batches replaced by samples."""
        return OwnSamples(self, data, setting)

    def flops_per_token(self, model: ModelConfig, sequence_length: int) -> float:
        """A forward pass of each prompt and of each token written but the last, in the updates on samples; adapters are
        not counted."""
        written = self.prompt_tokens + self.max_tokens - 1
        parts = flops_per_token(model, written, NOTHING)
        head = parts.pop("head")  # only the last token of a prompt has logits
        return self.share * (sum(parts.values()) * written + head * self.max_tokens) / sequence_length

    def bytes_per_device(self, model: ModelConfig, layout: Layout) -> int:
        """Nothing: keys and values are there while samples are written, when no activations are."""
        return 0

    def check(self, sequence_length: int) -> list[tuple[str, str]]:
        """A problem (config key, message) if prompt and samples exceed sequences of this many tokens."""
        needed = self.prompt_tokens + self.max_tokens
        if needed <= sequence_length:
            return []
        said = f"{self.prompt_tokens} (prompt_tokens) + {self.max_tokens} (max_tokens) tokens"
        return [("objective.on_policy", f"{said} do not fit in data.sequence_length ({sequence_length})")]


class OwnSamples(BatchSource):
    """The batches of the data, replaced by samples of the model for on-policy updates."""

    def __init__(self, settings: OnPolicy, data: BatchSource, setting: Setting):
        self._settings, self._data, self._seed, self._model_of = settings, data, setting.seed, setting.model_of
        sample, like = functools.partial(own_samples, settings=settings, end=setting.tokenizer.eos_id), setting.batch
        program = jax.jit(sample).lower(
            setting.model_of(setting.state), like["tokens"], like["segment_ids"], np.uint32(0)
        )
        self._sample = program.compile()

    def __call__(self, update: int, state: Any) -> Batch | None:
        batch, draws = self._data(update, state), self._settings.draws(self._seed, update)
        if batch is None or draws is None:
            return batch
        return self._sample(self._model_of(state), batch["tokens"], batch["segment_ids"], draws)


def own_samples(
    model: Maverick, tokens: jax.Array, segment_ids: jax.Array, seed: jax.Array, *, settings: OnPolicy, end: int | None
) -> Batch:
    """A batch in which `model` continues the beginnings of the rows of `tokens` and `segment_ids`, both int32[A, b, T].

    Each row is one document: the prompt, the generated tokens up to and including `end`, then padding. The label of a
    generated token is ~token, which marks a sample (see `ops.distillation`), with loss weight 1; all other loss weights
    are 0. Row g = a * b + i is sampled with a seed made of (seed uint32[], g), on any mesh and with any number of
    microbatches.
    """
    A, b, _ = tokens.shape
    end = NO_TOKEN if end is None else end
    first = jnp.arange(A, dtype=jnp.uint32) * np.uint32(b)

    def one(part) -> Batch:
        tokens, segment_ids, first = part
        tokens, segment_ids = (reshard(x, PartitionSpec(None, None)) for x in (tokens, segment_ids))
        lengths = prompt_lengths(tokens[:, : settings.prompt_tokens], segment_ids, end)
        seeds = row_seeds(seed, first + jnp.arange(b, dtype=jnp.uint32))
        written = _write(model, tokens[:, : settings.prompt_tokens], lengths, seeds, settings, end)
        batch = rows_of(tokens, lengths, written, end)
        return {name: reshard(x, model.rules(*FIELDS[name].axes)) for name, x in batch.items()}

    return jax.lax.map(one, (tokens, segment_ids, first))


def prompt_lengths(tokens: jax.Array, segment_ids: jax.Array, end: int) -> jax.Array:
    """int32[b]: how many of the tokens [b, P] belong to the first document and come before its end token."""
    inside = (segment_ids[:, : tokens.shape[1]] == 1) & (tokens != end)
    return jnp.sum(jnp.cumprod(inside.astype(jnp.int32), axis=1), axis=1)


def _write(model: Maverick, prompts, lengths, seeds, settings: OnPolicy, end: int) -> jax.Array:
    """int32[b, max_tokens]: the tokens that the model generates after prompts [b, P] of `lengths` tokens, each drawn
    with a seed of its own, uint32[b]; -1 after `end`. A row without a prompt continues an arbitrary token."""
    groups = num_groups(model.config)
    stacked, empty = Scanned.of(model), empty_slots(len(prompts), model.config.vocab_size, model.rules, groups)
    rules = dataclasses.replace(
        empty.rules,
        temperature=jnp.full_like(empty.rules.temperature, settings.temperature),
        top_p=jnp.full_like(empty.rules.top_p, settings.top_p),
        seed=reshard(seeds, model.rules("batch")),
    )
    slots = dataclasses.replace(
        empty,
        limit=jnp.full_like(empty.limit, settings.max_tokens),
        active=~empty.active,
        stops=jnp.full_like(empty.stops, end),
        rules=rules,
    )
    context = settings.prompt_tokens + settings.max_tokens
    cache, slots = begun(stacked, prompts, jnp.maximum(lengths, 1), slots, context)
    _, slots, steps = decode(stacked, cache, slots, settings.max_tokens - 1)
    _, last = next_tokens(stacked, slots)
    tokens = jnp.concatenate([steps.tokens, last.tokens[None]])
    return reshard(tokens.T, PartitionSpec(None, None))


def row_seeds(seed: jax.Array, rows: jax.Array) -> jax.Array:
    """uint32[b]: the seeds of `rows` uint32[b] of an update with `seed` uint32[]."""
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), dtype=jnp.uint32))(rows)


def rows_of(tokens: jax.Array, lengths: jax.Array, written: jax.Array, end: int) -> Batch:
    """A batch [b, T]: the first `lengths` tokens of each row of `tokens` [b, T], then the generated tokens `written`
    [b, N] up to their end."""
    ends = (written == end).astype(jnp.int32)
    wanted = (jnp.cumsum(ends, axis=1) - ends == 0) & (lengths > 0)[:, None]
    lengths = lengths[:, None]
    filled = lengths + jnp.sum(wanted, axis=1, dtype=jnp.int32, keepdims=True)
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    sample = jnp.take_along_axis(written, jnp.clip(place - lengths, 0, written.shape[1] - 1), axis=1)
    real, learned = place < filled, (place >= lengths - 1) & (place < filled - 1)
    ids = jnp.where(real, jnp.where(place < lengths, tokens, sample), 0)
    following = jnp.concatenate([ids[:, 1:], jnp.zeros_like(ids[:, :1])], axis=1)
    return {
        "tokens": ids,
        "labels": jnp.where(learned, ~following, 0),
        "positions": jnp.where(real, place, 0),
        "segment_ids": real.astype(jnp.int32),
        "loss_weights": learned.astype(jnp.float32),
    }
