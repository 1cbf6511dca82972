"""Counts decisions by teacher forcing, on the device. At each label that decides something, the model's most likely
token is compared with the label. `train.evaluation.decisions` computes metrics from the counts."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from data.rows.weighing import CHOICES
from data.trajectories.decisions import ARGUMENTS, CLOSES_SHIFT, DECIDES, NAME, Decision
from maverick_jax.ops.argmax import argmax_token
from maverick_jax.ops.collectives import batch_sums
from maverick_jax.sharding import ShardingRules

Counts = dict[str, Any]
DECISIONS = "decisions"
"""Name of the counts among the sums of an evaluation."""
DECIDED, CLOSED = (Decision.CALL, Decision.ANSWER, Decision.ASK), (Decision.ANSWER, Decision.ASK)
"""Classes of turns that are counted separately: at the token that decides whether the turn calls, and at the token that
decides whether it asks."""


def decision_counts(
    hidden: jax.Array, head: jax.Array, batch: dict[str, jax.Array], rules: ShardingRules, chunk: int | None = None
) -> Counts:
    """`counts` for a batch of arrays [b, T], from hidden states [b, T, D] and the output matrix [D, V]."""
    guessed = argmax_token(hidden, head, rules=rules, chunk=chunk)
    return counts(guessed, batch["labels"], batch[CHOICES], head.shape[1], rules)


def counts(guessed: jax.Array, labels: jax.Array, choices: jax.Array, V: int, rules: ShardingRules) -> Counts:
    """Counts from most likely tokens `guessed` and `labels`, int32[b, T], and the labels' decision bits `choices`,
    uint8[b, T].

    Returns `right` int32[5], for DECIDED and then CLOSED: labels that were guessed; `wrong` int32[5, V]: the other
    labels, by the guessed token; `calls` int32[2, 2], for names and arguments: their number, and the number with every
    token right.
    """

    def local(guessed, labels, choices):
        right, closes = guessed == labels, (choices >> CLOSES_SHIFT) & DECIDES
        cases = [choices & DECIDES == int(of) for of in DECIDED] + [closes == int(of) for of in CLOSED]
        missed = lambda case: jnp.zeros_like(guessed, shape=V).at[guessed].add((case & ~right).astype(jnp.int32))
        return {
            "right": jnp.stack([jnp.sum(case & right, dtype=jnp.int32) for case in cases]),
            "wrong": jnp.stack([missed(case) for case in cases]),
            "calls": jnp.stack([_whole(choices & part > 0, right) for part in (NAME, ARGUMENTS)]),
        }

    return batch_sums(local, guessed, labels, choices, rules=rules)


def _whole(part: jax.Array, right: jax.Array) -> jax.Array:
    """int32[2]: number of stretches of consecutive tokens in `part` bool[b, T], and the number of those that are all
    right."""
    edge = jnp.zeros_like(part[:, :1])
    begins = part & ~jnp.concatenate([edge, part[:, :-1]], axis=1)
    ends = part & ~jnp.concatenate([part[:, 1:], edge], axis=1)
    missed = (part & ~right).astype(jnp.int32)
    reached = jnp.cumsum(missed, axis=1)
    before = lax.cummax(jnp.where(begins, reached - missed, 0), axis=1)
    return jnp.stack([jnp.sum(x, dtype=jnp.int32) for x in (ends, ends & (reached == before))])
