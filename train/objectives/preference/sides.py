"""Sums over the sides of the pairs of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data.rows.fields import MISMATCHED
from maverick_jax.ops.segment_sums import segment_sums
from train.objectives.preference.losses.base import SideSums
from train.rollouts.source import Batch


class Counted(NamedTuple):
    """Which pairs and sides of a batch count. A row of T tokens has room for P = T // 2 pairs."""

    pairs: jax.Array
    """bool[b, P]: both sides are there, and tokens of one (or both) count."""
    sides: jax.Array
    """bool[b, P, 2]: tokens of the side count."""
    weight: jax.Array
    """float32[b, P, 2]: the sum of its tokens' weights."""


def counted(batch: Batch, needs_tokens: bool) -> Counted:
    """`needs_tokens`: tokens of both sides must count, not of one alone."""
    there = side_totals(jnp.ones_like(batch["loss_weights"]), batch) > 0
    weight = side_totals(batch["loss_weights"], batch)
    sides = weight > 0
    enough = jnp.all(sides, axis=-1) if needs_tokens else jnp.any(sides, axis=-1)
    return Counted(jnp.all(there, axis=-1) & enough, sides, weight)


def side_sums(batch: Batch, own: jax.Array, theirs: jax.Array | None, factors: jax.Array | None = None) -> SideSums:
    """The sums over tokens of log-probabilities of labels, float32[b, T], of the model and of the reference (None:
    there is none), weighted by the batch's loss weights times `factors`."""
    weights = batch["loss_weights"] if factors is None else batch["loss_weights"] * factors
    total = lambda x: side_totals(x, batch)
    mine = total(weights * own)
    return SideSums(mine, jnp.zeros_like(mine) if theirs is None else total(weights * theirs), total(weights))


def mismatched_sums(batch: Batch, own: jax.Array, theirs: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The change of all mismatched answers together, in nats, and their number, float32[]."""
    changes = own if theirs is None else own - theirs
    there = batch["sides"] == MISMATCHED
    numbers = jnp.where(there, batch["pair_ids"] - 1, -1)
    count = batch["sides"].shape[-1] // 2
    of_each = lambda values: segment_sums(values, numbers, count)
    answers = of_each(there.astype(jnp.float32)) > 0
    return jnp.sum(of_each(batch["loss_weights"] * changes)), jnp.sum(answers.astype(jnp.float32))


def divergence(changes: jax.Array, count: jax.Array) -> jax.Array:
    """The mean change, at least 0 and without gradient, float32[]; 0 without answers."""
    return jax.lax.stop_gradient(jnp.maximum(changes / jnp.maximum(count, 1), 0))


def side_totals(values: jax.Array, batch: Batch) -> jax.Array:
    """float32[b, T // 2, 2]: the sum of `values` [b, T] over the labels of each side of each pair."""
    P = values.shape[-1] // 2
    side = batch["sides"].astype(jnp.int32)
    is_side = (side > 0) & (side < MISMATCHED)
    numbers = jnp.where(is_side, 2 * (batch["pair_ids"] - 1) + side - 1, -1)
    found = segment_sums(values, numbers, 2 * P)
    return found.reshape(found.shape[0], P, 2)
