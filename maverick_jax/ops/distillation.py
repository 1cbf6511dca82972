"""Distillation loss, straight from hidden states and output matrices of teacher and student, in chunks of rows.

No array of [rows, V] ever exists, and the gradient is computed in the same pass as the loss (as in `cross_entropy`).

The vocabulary may be split over the tensor axis; devices then exchange a few numbers per row, never logits. Divergences
between teacher T and student S at temperature tau (their logits are divided by it): forward KL(T|S), reverse KL(S|T),
and the generalized Jensen-Shannon divergence beta KL(T|M) + (1 - beta) KL(S|M) with M = beta T + (1 - beta) S (GKD,
arXiv 2306.13649), where beta = 0 and 1 mean forward and reverse KL.

n rows on this device, c rows per chunk, D model, v vocabulary entries on this device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maverick_jax.ops.collectives import gather_weight, use_sharded, vary
from maverick_jax.ops.dot import dot
from maverick_jax.ops.stream import gather_tokens, working
from maverick_jax.ops.vocabulary import chunks, is_token, log_softmax, times, unchunked
from maverick_jax.sharding import ShardingRules, axes_tuple

LOGITS_PER_CHUNK = 1 << 21
"""Logits of one model in a chunk, which holds several arrays of this many float32 elements (8 MiB each)."""


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Measures how far the student's distribution is from the teacher's."""

    beta: float = 0.0
    """0: forward KL; 1: reverse KL; between: generalized Jensen-Shannon."""
    temperature: float = 1.0
    tau_squared: bool = False
    """Multiply by temperature^2, so that gradients keep their size (Hinton et al., arXiv 1503.02531)."""


class Terms(NamedTuple):
    """Loss terms of each row, float32[c], nats."""

    nll: jax.Array
    """-log p(label) of the student."""
    divergence: jax.Array
    teacher_nll: jax.Array
    teacher_entropy: jax.Array
    extra: dict[str, jax.Array] = {}
    """Other quantities that the target reports as metrics, by name."""


class Weighed(NamedTuple):
    """The weights of each row's loss terms, float32[c]."""

    hard: jax.Array
    """Weight of the cross-entropy."""
    soft: jax.Array
    """Weight of the divergence."""
    parts: dict[str, jax.Array]
    """Quantities that the two were computed from, by name: metrics."""


Weigh = Callable[[Terms, jax.Array, dict[str, jax.Array]], Weighed]
"""(terms, weights of the rows [c], controls) -> Weighed. No gradient passes through it, and rows of weight 0 get no
gradient. `controls` are scalars; see `distillation`."""


class Sums(NamedTuple):
    """Sums over all rows, float32 scalars; only `total` carries a gradient."""

    total: jax.Array
    """The loss: hard * nll + soft * divergence."""
    terms: Terms
    """Each term times the row's own weight."""
    weighed: Weighed
    """`hard` and `soft`, and the parts times the row's own weight."""


class Student(NamedTuple):
    """A chunk of the student's outputs, with which a target is compared."""

    logits: jax.Array
    """float32[c, v]"""
    log_probs: jax.Array
    """float32[c, v]"""
    labels: jax.Array
    """int32[c]"""


class Comparison(NamedTuple):
    """The result of comparing a chunk of a target with the student. Arrays are float32[c]."""

    divergence: jax.Array
    gradient: Callable[[jax.Array, jax.Array], jax.Array] | None
    """(hard, soft), float32[c] each -> hard * p + soft * (gradient of the divergence with respect to the student's
    logits), float32[c, v], where p are the student's probabilities. One function returns the sum, because that takes
    fewer passes over [c, v]. None in slow twins."""
    teacher_nll: jax.Array
    teacher_entropy: jax.Array
    extra: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SoftTarget:
    """The teacher's distribution: all of it (`whole_target`), or its stored part (`ops.sparse_targets`)."""

    rows: Any
    """Arrays [B, T, ...], cut into chunks."""
    fixed: Any
    """Arrays [D, V], sharded like the student's output matrix."""
    compare: Callable[["Divergence", tuple[str, ...], Student, Any, Any, dict[str, jax.Array]], Comparison]
    """(divergence, axes of the vocabulary, student, rows, fixed, controls) of a chunk on one device."""
    plain: Callable[..., Comparison]
    """The slow twin: (divergence, whole logits [B, T, V], labels, rows, fixed, controls). It returns no gradient."""
    extra: tuple[str, ...] = ()
    """Names in `Comparison.extra`."""


def whole_target(hidden: jax.Array, head: jax.Array) -> SoftTarget:
    """A target of the teacher's hidden states [B, T, D] and output matrix [D, V], in one dtype; D may differ from the
    student's."""
    return SoftTarget(hidden, head, _compare_whole, _plain_whole)


@jax.named_scope("loss")
def distillation(
    student,
    teacher: SoftTarget,
    labels,
    weights,
    controls,
    *,
    weigh: Weigh,
    divergence: Divergence,
    rules: ShardingRules,
    chunk=None,
) -> Sums:
    """Sums over all tokens of hard_i * nll_i + soft_i * divergence_i, where `weigh` chooses hard and soft per token.

    student: (hidden [B, T, D] of the residual stream, head [D, V] of any dtype, as stored, gathered in hidden's).
    labels int32[B, T]; ~t means token t without a hard target (a sample of the student): its terms are those of t, its
    hard weight is 0. weights float32[B, T]. controls: float32 scalars by name. If they contain `interpolation` t, the
    target's logits are (1 - t) times the student's (as a constant) plus t times the teacher's (TAID, arXiv 2501.16937).
    Only the student's pair gets a gradient.
    """
    batch_axes = rules.tokens
    vocab_axes = axes_tuple(rules.vocab)

    def local(student, rows, fixed, labels, weights, controls):
        whole = gather_weight(student[1], student[0].dtype, gathered, batch_axes)
        n, v = labels.size, whole.shape[1]
        flat = lambda tree: jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), tree)
        student = flat(vary(student[0], vocab_axes)), whole
        c = min(chunk or max(64, LOGITS_PER_CHUNK // v), n)
        static = _Static(vocab_axes, weigh, divergence, c, teacher.compare, teacher.extra)
        sums = _local(static, student, flat(rows), fixed, flat(labels), flat(weights), controls)
        return jax.tree.map(lambda x: lax.psum(x, batch_axes), sums)

    student = working(gather_tokens(student[0], rules), vocab_axes), student[1]
    tokens, nothing = rules.storage("batch", "length"), rules.storage()
    head = rules.compute("embed", "vocab")
    rows, fixed = lax.stop_gradient((teacher.rows, teacher.fixed))
    stored, gathered = use_sharded(student[1], head, batch_axes)
    arguments = ((student[0], stored), rows, fixed, labels, weights, controls)
    # a tree without arrays (no `fixed`, no controls) has no spec of its own
    mine = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, arguments[0])
    specs = (mine, tokens, head if jax.tree.leaves(fixed) else fixed, tokens, tokens, nothing)
    return jax.shard_map(local, in_specs=specs, out_specs=nothing)(*arguments)


def distillation_reference(
    student, teacher: SoftTarget, labels, weights, controls, *, weigh: Weigh, divergence: Divergence
) -> Sums:
    """The slow twin, on whole logits and probabilities. Arguments and result as `distillation`."""
    s = jnp.einsum("BTD,DV->BTV", *student, preferred_element_type=jnp.float32)
    token = jnp.where(labels < 0, ~labels, labels)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(s), token[..., None], axis=-1)[..., 0]
    found = teacher.plain(divergence, s, token, *lax.stop_gradient((teacher.rows, teacher.fixed)), controls)
    terms = Terms(nll, found.divergence, found.teacher_nll, found.teacher_entropy, found.extra)
    weighed = _counted(lax.stop_gradient(weigh(terms, weights, controls)), labels, weights)
    return _summed(terms, weighed, weights)


def _plain_whole(divergence: Divergence, s, token, hidden, head, controls) -> Comparison:
    t = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    log_t = jax.nn.log_softmax(t)
    mix = controls.get("interpolation", 1.0)
    target = lax.stop_gradient((1 - mix) * s + mix * t)
    value = plain_divergence(divergence, s / divergence.temperature, target / divergence.temperature)
    nll = -jnp.take_along_axis(log_t, token[..., None], axis=-1)[..., 0]
    return Comparison(value, None, nll, -jnp.sum(jnp.exp(log_t) * log_t, axis=-1), {})


def plain_divergence(divergence: Divergence, s, t):
    """The divergence of logits [..., V] that are already divided by the temperature; the slow twin."""
    tau, beta = divergence.temperature, divergence.beta
    log_s, log_t = jax.nn.log_softmax(s), jax.nn.log_softmax(t)
    kl = lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    if beta in (0.0, 1.0):
        found = kl(log_t, log_s) if beta == 0 else kl(log_s, log_t)
    else:
        log_m = jnp.logaddexp(log_t + jnp.log(beta), log_s + jnp.log1p(-beta))
        found = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
    return found * tau**2 if divergence.tau_squared else found


def _counted(weighed: Weighed, labels, weights) -> Weighed:
    """Sets the weights of padding to 0, and the hard weight of sampled labels."""
    soft = jnp.where(weights > 0, weighed.soft, 0)
    return Weighed(jnp.where((weights > 0) & (labels >= 0), weighed.hard, 0), soft, weighed.parts)


def _summed(terms: Terms, weighed: Weighed, weights) -> Sums:
    own = lambda tree: jax.tree.map(lambda x: jnp.sum(weights * x), tree)
    total = jnp.sum(weighed.hard * terms.nll + weighed.soft * terms.divergence)
    return Sums(total, own(terms), Weighed(jnp.sum(weighed.hard), jnp.sum(weighed.soft), own(weighed.parts)))


# ---- a chunk of rows on one device's shard of the vocabulary -------------------------------------------------------


class _Static(NamedTuple):
    vocab_axes: tuple[str, ...]
    weigh: Weigh
    divergence: Divergence
    rows: int
    compare: Callable
    extra: tuple[str, ...]


def _weighed(static: _Static, student, rows, fixed, labels, weights, controls):
    """Sums of a chunk, and d total / d logits [c, v]."""
    axes = static.vocab_axes
    hidden, head = student
    s, token = dot(hidden, head, (1,), (0,)), jnp.where(labels < 0, ~labels, labels)
    chunk = Student(s, log_softmax(axes, s), token)
    is_label, nll = _of_label(axes, chunk.log_probs, token)
    found = static.compare(static.divergence, axes, chunk, rows, fixed, controls)
    terms = Terms(nll, found.divergence, found.teacher_nll, found.teacher_entropy, found.extra)
    weighed = _counted(static.weigh(terms, weights, controls), labels, weights)
    assert found.gradient is not None
    dlogits = found.gradient(weighed.hard, weighed.soft) - jnp.where(is_label, weighed.hard[:, None], 0)
    return _summed(terms, weighed, weights), dlogits


def _of_label(axes, log_probs, labels):
    """A mask of the labels bool[c, v], and their -log p [c]."""
    is_label = is_token(axes, labels, log_probs.shape[1])
    return is_label, -lax.psum(jnp.sum(jnp.where(is_label, log_probs, 0), axis=-1), axes)


def _compare_whole(divergence: Divergence, axes, student: Student, hidden, head, controls) -> Comparison:
    over_vocabulary = lambda x: lax.psum(jnp.sum(x, axis=-1), axes)
    s, t = student.logits, dot(hidden, head, (1,), (0,))
    log_s, log_t = student.log_probs, log_softmax(axes, t)
    _, nll = _of_label(axes, log_t, student.labels)
    entropy = -over_vocabulary(jnp.exp(log_t) * log_t)
    if "interpolation" in controls:
        t = (1 - controls["interpolation"]) * s + controls["interpolation"] * t
    if divergence.temperature != 1 or "interpolation" in controls:
        log_s, log_t = (log_softmax(axes, x * (1 / divergence.temperature)) for x in (s, t))
    value, gradient = divergence_of(divergence, over_vocabulary, log_s, log_t)
    both = lambda hard, soft: hard[:, None] * jnp.exp(student.log_probs) + soft[:, None] * gradient
    return Comparison(value, both, nll, entropy, {})


def divergence_of(divergence: Divergence, over_vocabulary, log_s, log_t) -> tuple[jax.Array, jax.Array]:
    """Value [c], and gradient [c, v] with respect to the student's logits before they are divided by the temperature.
    `over_vocabulary` sums [c, v] -> [c]."""
    beta, tau = divergence.beta, divergence.temperature
    p_s, p_t = jnp.exp(log_s), jnp.exp(log_t)
    if beta == 0:
        value, gradient = over_vocabulary(p_t * (log_t - log_s)), p_s - p_t
    else:
        # d value / d p_s is `slope` up to a constant, which the softmax cancels
        log_m = log_t if beta == 1 else jnp.logaddexp(log_t + jnp.log(beta), log_s + jnp.log1p(-beta))
        from_teacher = 0.0 if beta == 1 else beta * over_vocabulary(p_t * (log_t - log_m))
        share = 1.0 if beta == 1 else 1 - beta
        slope = share * (log_s - log_m)
        mean = over_vocabulary(p_s * slope)
        value, gradient = from_teacher + mean, p_s * (slope - mean[:, None])
    scale = tau**2 if divergence.tau_squared else 1.0
    return value * scale, gradient * (scale / tau)


def _zero_sums(static: _Static, weights, controls) -> Sums:
    """Zeros in the shape of the sums, which depends on the metrics of `weigh` and of the target."""

    def of_a_row(row, controls):
        terms = Terms(row, row, row, row, {name: row for name in static.extra})
        return _summed(terms, static.weigh(terms, row, controls), row)

    scalars = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), controls)
    shapes = jax.eval_shape(of_a_row, jax.ShapeDtypeStruct((1,), jnp.float32), scalars)
    return jax.tree.map(lambda _: jnp.zeros_like(weights, shape=()), shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local(static, student, rows, fixed, labels, weights, controls) -> Sums:
    def one(sums, chunk):
        x, rows, labels, weights = chunk
        found, _ = _weighed(static, (x, student[1]), rows, fixed, labels, weights, controls)
        return jax.tree.map(jnp.add, sums, found), None

    zero = _zero_sums(static, weights, controls)
    return lax.scan(one, zero, chunks(static.rows, student[0], rows, labels, weights))[0]


def _forward(static, student, rows, fixed, labels, weights, controls):
    hidden, head = student

    def one(carry, chunk):
        sums, dhead = carry
        x, rows, labels, weights = chunk
        found, dlogits = _weighed(static, (x, head), rows, fixed, labels, weights, controls)
        dlogits = dlogits.astype(x.dtype)
        dhead += dot(x, dlogits, (0,), (0,))
        return (jax.tree.map(jnp.add, sums, found), dhead), dot(dlogits, head, (1,), (1,)).astype(x.dtype)

    init = (_zero_sums(static, weights, controls), jnp.zeros_like(head, dtype=jnp.float32))
    (sums, dhead), dhidden = lax.scan(one, init, chunks(static.rows, hidden, rows, labels, weights))
    return sums, (unchunked(dhidden, labels.size), dhead)


def _backward(static, saved, cotangents: Sums):
    (dhidden, dhead), scale = saved, cotangents.total  # the other sums are metrics
    return times(scale, dhidden, dhead), None, None, None, None, None


_local.defvjp(_forward, _backward)
