"""Held-out loss by position in the document: whether a model uses a long context, and where it fails beyond that which
it was trained for."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.cross_entropy import cross_entropy
from train.evaluation.held_out import HeldOut
from train.objectives.base import Batch

FIRST = 32
"""Positions of the first bucket; each further bucket ends at twice the position where the one before does."""


def buckets(length: int) -> list[int]:
    """Where the buckets of rows of `length` tokens end; the last one is cut at `length`."""
    ends = [FIRST]
    while ends[-1] < length:
        ends.append(2 * ends[-1])
    return [*ends[:-1], length]


def loss_by_position(model: Maverick, held_out: HeldOut) -> dict[str, dict[str, Any]]:
    """By source, of its held-out batches: `ends` of the buckets of positions (a bucket begins where the one before
    ends); `loss`, the mean in nats over the labels whose token lies there, None where there are none; `tokens`, their
    number. Call it under the model's mesh."""
    ends = buckets(held_out.feed.config.data.sequence_length)
    step, found = jax.jit(functools.partial(_sums, ends=tuple(ends))), {}
    for name, batches in held_out.batches_by_source():
        with batches as opened:
            sums = jax.device_get(functools.reduce(_added, (step(model, batch) for batch in opened)))
        means = [float(total / count) if count else None for total, count in zip(*sums, strict=True)]
        found[name] = {"ends": ends, "loss": means, "tokens": [int(count) for count in sums[1]]}
    return found


def _added(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return jax.tree.map(jnp.add, a, b)


def _sums(model: Maverick, batch: Batch, ends: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Of a batch [A, b, ...]: sums of losses and numbers of labels by bucket, float32[buckets]."""

    def of_microbatch(batch: Batch) -> tuple[jax.Array, ...]:
        hidden, _ = model.hidden(Inputs.of(batch))
        weighed = jnp.asarray(batch["loss_weights"] > 0, jnp.float32)
        head = model.stored_output_weight()
        losses = cross_entropy(hidden, head, batch["labels"], weighed, rules=model.rules).per_token * weighed
        place = batch["positions"]
        here = [((place >= begin) & (place < end)).astype(jnp.float32) for begin, end in itertools.pairwise((0, *ends))]
        return tuple(jnp.stack([jnp.sum(values * part) for part in here]) for values in (losses, weighed))

    return jax.tree.map(functools.partial(jnp.sum, axis=0), jax.lax.map(of_microbatch, batch))
