"""Targets for `ops.distillation` that hold the teacher's top k tokens at each position and the exact mass of the tail.
`ops.top_k` computes them.

There are three modes, each of which defines a slightly different divergence:

- tail: both distributions have k + 1 buckets, and the last one holds all tokens outside the teacher's top k. The
  divergence is never more than the whole one (merging buckets loses information), and equal to it if student and
  teacher divide the tail in the same proportions. The student learns how much mass belongs in the tail, not where.
- renormalised: both distributions are restricted to the top k and divided by their mass there. The student learns
  nothing about the tail: any mass there costs nothing. If the top k hold little mass, the target is overconfident.
- sampled: the forward KL's sum over the top k, plus the tail's mass times the mean over tokens drawn from the
  teacher's tail. The expected value and the expected gradient are those of the whole KL.

c rows per chunk, v vocabulary entries on this device, s samples.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maverick_jax.ops.distillation import Comparison, Divergence, SoftTarget, Student, divergence_of, plain_divergence
from maverick_jax.ops.vocabulary import gather, log_softmax, places

Mode = Literal["tail", "renormalised", "sampled"]
TAIL_FLOOR = 1e-35
"""Floor of the tail mass on both sides, so that an empty tail adds no divergence."""
MASSES = ("teacher_mass", "student_mass")
"""Metrics: the mass of teacher and student on the teacher's top k, at the divergence's temperature."""


class TopKTargets(NamedTuple):
    """The teacher's top k and tail, at the divergence's temperature, except `label_log_prob` and `entropy`
    (temperature 1)."""

    ids: jax.Array
    """uint16, uint32 or int32 [B, T, k]: distinct token ids."""
    log_probs: jax.Array
    """float16 or float32 [B, T, k]"""
    log_tail: jax.Array
    """float32[B, T]: -inf for an empty tail."""
    label_log_prob: jax.Array
    """float32[B, T], at temperature 1."""
    entropy: jax.Array
    """float32[B, T], nats, at temperature 1."""
    sample_ids: jax.Array | None = None
    """[B, T, s] in the dtype of `ids`: drawn from the tail with replacement. Only for `sampled`."""
    sample_log_probs: jax.Array | None = None
    """float16 or float32 [B, T, s]"""


def sparse_target(kept: TopKTargets, mode: Mode) -> SoftTarget:
    """A target for `ops.distillation`. Raises ValueError for the mode `sampled` without samples."""
    if mode == "sampled":
        if kept.sample_ids is None:
            raise ValueError("the mode `sampled` needs samples of the tail")
        return SoftTarget(kept, (), _compare_sampled, _plain_sampled, MASSES)
    tail = mode == "tail"
    kept = kept._replace(sample_ids=None, sample_log_probs=None)
    return SoftTarget(
        kept, (), functools.partial(_compare_buckets, tail), functools.partial(_plain_buckets, tail), MASSES
    )


def _compare_buckets(tail: bool, divergence, axes, student: Student, kept: TopKTargets, fixed, controls) -> Comparison:
    log_s, ids, k = _at_temperature(divergence, axes, student), kept.ids.astype(jnp.int32), kept.ids.shape[1]
    there = gather(axes, log_s, ids)
    rest = places(axes, jnp.exp(log_s), ids).set(0, mode="drop")
    mass = jnp.maximum(lax.psum(jnp.sum(rest, axis=-1), axes), TAIL_FLOOR)
    mine, theirs = _buckets(tail, there, jnp.log(mass), kept)
    if "interpolation" in controls:
        theirs = jax.nn.log_softmax((1 - controls["interpolation"]) * mine + controls["interpolation"] * theirs)
    value, of_buckets = divergence_of(divergence, functools.partial(jnp.sum, axis=-1), mine, theirs)
    # the last bucket's logit is the logsumexp of its tokens' logits: each token gets its share of the gradient
    of_rest = of_buckets[:, -1] / mass if tail else jnp.zeros_like(mass)

    def gradient(hard, soft):
        at_top = soft[:, None] * of_buckets[:, :k]
        if divergence.temperature == 1:  # then `rest` is the student's distribution outside the top k
            both, at_top = (hard + soft * of_rest)[:, None] * rest, hard[:, None] * jnp.exp(there) + at_top
        else:
            both = hard[:, None] * jnp.exp(student.log_probs) + (soft * of_rest)[:, None] * rest
        return places(axes, both, ids).add(at_top, mode="drop")

    return _compared(kept, value, gradient, there)


def _buckets(tail: bool, there, log_rest, kept: TopKTargets) -> tuple[jax.Array, jax.Array]:
    """Log-masses [..., k + 1], or [..., k], of student and teacher, normalized to sum 1 to undo rounding."""
    mine, theirs = there, kept.log_probs.astype(jnp.float32)
    if tail:
        mine = jnp.concatenate([mine, log_rest[..., None]], axis=-1)
        theirs = jnp.concatenate([theirs, jnp.maximum(kept.log_tail, jnp.log(TAIL_FLOOR))[..., None]], axis=-1)
    return jax.nn.log_softmax(mine), jax.nn.log_softmax(theirs)


def _compare_sampled(divergence: Divergence, axes, student: Student, kept: TopKTargets, fixed, controls) -> Comparison:
    if divergence.beta or "interpolation" in controls:
        raise ValueError("the mode `sampled` supports only the forward KL")
    log_s, tau = _at_temperature(divergence, axes, student), divergence.temperature
    ids, log_t, shares = _listed(kept)
    listed = gather(axes, log_s, ids)
    value = jnp.sum(shares * (log_t - listed), axis=-1)
    scale = tau**2 if divergence.tau_squared else 1.0

    def gradient(hard, soft):
        soft = soft * (scale / tau)
        p = jnp.exp(student.log_probs)
        both = (hard + soft)[:, None] * p if tau == 1 else hard[:, None] * p + soft[:, None] * jnp.exp(log_s)
        return places(axes, both, ids).add(-soft[:, None] * shares, mode="drop")

    return _compared(kept, value * scale, gradient, listed[:, : kept.ids.shape[1]])


def _listed(kept: TopKTargets) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Top k and samples: ids, the teacher's log-probabilities, and the weight of each (sum 1), all [..., k + s]."""
    assert kept.sample_ids is not None and kept.sample_log_probs is not None
    top, s = kept.log_probs.astype(jnp.float32), kept.sample_ids.shape[-1]
    whole = jax.nn.logsumexp(jnp.concatenate([top, kept.log_tail[..., None]], axis=-1), axis=-1, keepdims=True)
    each = jnp.broadcast_to(jnp.exp(kept.log_tail[..., None] - whole) / s, kept.sample_ids.shape)
    ids = jnp.concatenate([kept.ids.astype(jnp.int32), kept.sample_ids.astype(jnp.int32)], axis=-1)
    log_t = jnp.concatenate([top, kept.sample_log_probs.astype(jnp.float32)], axis=-1) - whole
    return ids, log_t, jnp.concatenate([jnp.exp(top - whole), each], axis=-1)


def _at_temperature(divergence: Divergence, axes, student: Student):
    if divergence.temperature == 1:
        return student.log_probs
    return log_softmax(axes, student.logits * (1 / divergence.temperature))


def _compared(kept: TopKTargets, value, gradient, there) -> Comparison:
    masses = 1 - jnp.exp(kept.log_tail), jnp.sum(jnp.exp(there), axis=-1)
    return Comparison(value, gradient, -kept.label_log_prob, kept.entropy, dict(zip(MASSES, masses, strict=True)))


# ---- the slow twins, on whole logits [B, T, V] ---------------------------------------------------------------------


def _plain_buckets(tail: bool, divergence: Divergence, s, token, kept: TopKTargets, fixed, controls) -> Comparison:
    log_s, ids = jax.nn.log_softmax(s / divergence.temperature), kept.ids.astype(jnp.int32)
    there = jnp.take_along_axis(log_s, ids, axis=-1)
    outside = ~jnp.any(jax.nn.one_hot(ids, s.shape[-1], dtype=bool), axis=-2)
    log_rest = jnp.log(jnp.sum(jnp.where(outside, jnp.exp(log_s), 0), axis=-1) + TAIL_FLOOR)
    mine, theirs = _buckets(tail, there, log_rest, kept)
    mix = controls.get("interpolation", 1.0)
    target = lax.stop_gradient((1 - mix) * mine + mix * theirs)
    return _compared(kept, plain_divergence(divergence, mine, target), None, there)


def _plain_sampled(divergence: Divergence, s, token, kept: TopKTargets, fixed, controls) -> Comparison:
    log_s = jax.nn.log_softmax(s / divergence.temperature)
    ids, log_t, shares = _listed(kept)
    listed = jnp.take_along_axis(log_s, ids, axis=-1)
    value = jnp.sum(shares * (log_t - listed), axis=-1)
    value = value * divergence.temperature**2 if divergence.tau_squared else value
    return _compared(kept, value, None, listed[..., : kept.ids.shape[-1]])
