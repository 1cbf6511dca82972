"""Learning from a teacher's whole distribution, straight from hidden states and heads of both, in chunks of rows.

No array of [rows, V] ever exists, and the gradient is made in the same pass as the loss (as in `cross_entropy`).

The vocabulary may be split over the tensor axis; rows then exchange a few numbers, never logits. Divergences of the
teacher T and the student S at temperature tau (their logits divided by it): forward KL(T|S), reverse KL(S|T), and the
generalised Jensen-Shannon divergence beta KL(T|M) + (1 - beta) KL(S|M) with M = beta T + (1 - beta) S (GKD, arXiv
2306.13649), of which beta = 0 and 1 mean forward and reverse KL.

n rows on this device, c rows per chunk, D model, v vocabulary entries on this device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maverick_jax.ops.dispatch import vary
from maverick_jax.ops.dot import dot
from maverick_jax.sharding import ShardingRules, axes_tuple

LOGITS_PER_CHUNK = 1 << 21
"""Of either model; a chunk holds several arrays of this many float32 elements (8 MiB each)."""


@dataclasses.dataclass(frozen=True)
class Divergence:
    """How far the student's distribution is from the teacher's."""

    beta: float = 0.0
    """0: forward KL; 1: reverse KL; between: generalised Jensen-Shannon."""
    temperature: float = 1.0
    tau_squared: bool = False
    """Multiply by temperature^2, so that gradients keep their size (Hinton et al., arXiv 1503.02531)."""


class Terms(NamedTuple):
    """What is known of each row, float32[c], nats."""

    nll: jax.Array
    """-log p(label) of the student."""
    divergence: jax.Array
    teacher_nll: jax.Array
    teacher_entropy: jax.Array


class Weighed(NamedTuple):
    """What a row counts for, float32[c]."""

    hard: jax.Array
    """Of its cross-entropy."""
    soft: jax.Array
    """Of its divergence."""
    parts: dict[str, jax.Array]
    """What the two were made of, by name: metrics."""


Weigh = Callable[[Terms, jax.Array, dict[str, jax.Array]], Weighed]
"""(terms, weights of the rows [c], controls) -> Weighed. No gradient passes through it, and rows of weight 0 have none.
`controls` are scalars; `distillation` says what they may hold."""


class Sums(NamedTuple):
    """Over all rows, float32 scalars; only `total` carries a gradient."""

    total: jax.Array
    """hard * nll + soft * divergence: the loss."""
    terms: Terms
    """Each times the row's own weight."""
    weighed: Weighed
    """Its parts times the row's own weight."""


def distillation(
    student,
    teacher,
    labels,
    weights,
    controls,
    *,
    weigh: Weigh,
    divergence: Divergence,
    rules: ShardingRules,
    chunk=None,
) -> Sums:
    """Sums over all tokens of hard_i * nll_i + soft_i * divergence_i, hard and soft chosen per token by `weigh`.

    student, teacher: (hidden [B, T, D], head [D, V]), each pair in one dtype; widths may differ. labels int32[B, T], of
    which ~t stands for token t without a hard target (a sample, which nobody wrote): its terms are those of t, its hard
    weight is 0; weights float32[B, T]; controls: float32 scalars by name. If `interpolation` t is among them, the
    target's logits are (1 - t) of the student's (as a constant) and t of the teacher's (TAID, arXiv 2501.16937).
    Gradients reach the student's pair alone.
    """
    batch_axes = axes_tuple(rules.batch) + axes_tuple(rules.length)
    vocab_axes = axes_tuple(rules.vocab)

    def local(student, teacher, labels, weights, controls):
        v = student[1].shape[1]
        flat = lambda pair: (vary(pair[0], vocab_axes).reshape(-1, pair[0].shape[-1]), vary(pair[1], batch_axes))
        rows = min(chunk or max(64, LOGITS_PER_CHUNK // v), labels.size)
        static = _Static(vocab_axes, weigh, divergence, rows)
        sums = _local(static, flat(student), flat(teacher), labels.reshape(-1), weights.reshape(-1), controls)
        return jax.tree.map(lambda x: lax.psum(x, batch_axes), sums)

    tokens, nothing = rules.storage("batch", "length"), rules.storage()
    pair = (rules.storage("batch", "length", None), rules.compute("embed", "vocab"))
    teacher = jax.tree.map(lax.stop_gradient, teacher)
    specs = (pair, pair, tokens, tokens, jax.tree.map(lambda _: nothing, controls))
    out = jax.tree.map(lambda _: nothing, _shapes(weigh, controls))
    return jax.shard_map(local, in_specs=specs, out_specs=out)(student, teacher, labels, weights, controls)


def distillation_reference(
    student, teacher, labels, weights, controls, *, weigh: Weigh, divergence: Divergence
) -> Sums:
    """The obvious form, on whole logits and probabilities. Arguments and result as `distillation`."""
    s, t = (jnp.einsum("BTD,DV->BTV", *pair, preferred_element_type=jnp.float32) for pair in (student, teacher))
    log_s, log_t = jax.nn.log_softmax(s), lax.stop_gradient(jax.nn.log_softmax(t))
    token = jnp.where(labels < 0, ~labels, labels)
    of_label = lambda logp: jnp.take_along_axis(logp, token[..., None], axis=-1)[..., 0]
    mix = controls.get("interpolation", 1.0)
    target = lax.stop_gradient((1 - mix) * s + mix * t)
    terms = Terms(
        -of_label(log_s),
        _whole_divergence(divergence, s, target),
        -of_label(log_t),
        -jnp.sum(jnp.exp(log_t) * log_t, axis=-1),
    )
    weighed = _counted(lax.stop_gradient(weigh(terms, weights, controls)), labels, weights)
    return _summed(terms, weighed, weights)


def _whole_divergence(divergence: Divergence, s, t):
    tau, beta = divergence.temperature, divergence.beta
    log_s, log_t = jax.nn.log_softmax(s / tau), jax.nn.log_softmax(t / tau)
    kl = lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    if beta in (0.0, 1.0):
        found = kl(log_t, log_s) if beta == 0 else kl(log_s, log_t)
    else:
        log_m = jnp.logaddexp(log_t + jnp.log(beta), log_s + jnp.log1p(-beta))
        found = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
    return found * tau**2 if divergence.tau_squared else found


def _counted(weighed: Weighed, labels, weights) -> Weighed:
    """Padding counts for nothing, and a label nobody wrote for no cross-entropy."""
    soft = jnp.where(weights > 0, weighed.soft, 0)
    return Weighed(jnp.where((weights > 0) & (labels >= 0), weighed.hard, 0), soft, weighed.parts)


def _summed(terms: Terms, weighed: Weighed, weights) -> Sums:
    own = lambda tree: jax.tree.map(lambda x: jnp.sum(weights * x), tree)
    total = jnp.sum(weighed.hard * terms.nll + weighed.soft * terms.divergence)
    return Sums(total, own(terms), Weighed(jnp.sum(weighed.hard), jnp.sum(weighed.soft), own(weighed.parts)))


# ---- a chunk of rows on one device's part of the vocabulary --------------------------------------------------------


class _Static(NamedTuple):
    vocab_axes: tuple[str, ...]
    weigh: Weigh
    divergence: Divergence
    rows: int


def _log_softmax(axes, logits):
    largest = lax.pmax(jnp.max(logits, axis=-1), axes)
    total = lax.psum(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1), axes)
    return logits - (jnp.log(total) + largest)[:, None]


def _chunk(static: _Static, student, teacher, labels, controls) -> tuple[Terms, jax.Array, jax.Array]:
    """Terms of a chunk, and gradients of its nll and of its divergence with respect to the student's logits [c, v]."""
    axes, divergence = static.vocab_axes, static.divergence
    over_vocabulary = lambda x: lax.psum(jnp.sum(x, axis=-1), axes)
    s, t = (dot(hidden, head, (1,), (0,)) for hidden, head in (student, teacher))
    log_s, log_t = _log_softmax(axes, s), _log_softmax(axes, t)
    first = lax.axis_index(axes) * s.shape[1] if axes else 0
    labels = jnp.where(labels < 0, ~labels, labels)
    is_label = (labels - first)[:, None] == jnp.arange(s.shape[1], dtype=labels.dtype)[None, :]
    of_label = lambda logp: over_vocabulary(jnp.where(is_label, logp, 0))
    nll, teacher_nll = -of_label(log_s), -of_label(log_t)
    entropy = -over_vocabulary(jnp.exp(log_t) * log_t)
    dnll = jnp.exp(log_s) - is_label.astype(jnp.float32)
    if "interpolation" in controls:
        t = (1 - controls["interpolation"]) * s + controls["interpolation"] * t
    if divergence.temperature != 1 or "interpolation" in controls:
        log_s, log_t = (_log_softmax(axes, x * (1 / divergence.temperature)) for x in (s, t))
    value, gradient = _divergence(divergence, over_vocabulary, log_s, log_t)
    return Terms(nll, value, teacher_nll, entropy), dnll, gradient


def _divergence(divergence: Divergence, over_vocabulary, log_s, log_t):
    """Value [c], and gradient [c, v] with respect to the student's undivided logits."""
    beta, tau = divergence.beta, divergence.temperature
    p_s, p_t = jnp.exp(log_s), jnp.exp(log_t)
    if beta == 0:
        value, gradient = over_vocabulary(p_t * (log_t - log_s)), p_s - p_t
    else:
        # d value / d p_s is `slope` up to a constant, which the softmax takes away
        log_m = log_t if beta == 1 else jnp.logaddexp(log_t + jnp.log(beta), log_s + jnp.log1p(-beta))
        from_teacher = 0.0 if beta == 1 else beta * over_vocabulary(p_t * (log_t - log_m))
        share = 1.0 if beta == 1 else 1 - beta
        slope = share * (log_s - log_m)
        mean = over_vocabulary(p_s * slope)
        value, gradient = from_teacher + mean, p_s * (slope - mean[:, None])
    scale = tau**2 if divergence.tau_squared else 1.0
    return value * scale, gradient * (scale / tau)


def _weighed(static: _Static, student, teacher, labels, weights, controls):
    """Sums of a chunk, and d total / d logits [c, v]."""
    terms, dnll, ddivergence = _chunk(static, student, teacher, labels, controls)
    weighed = _counted(static.weigh(terms, weights, controls), labels, weights)
    dlogits = weighed.hard[:, None] * dnll + weighed.soft[:, None] * ddivergence
    return _summed(terms, weighed, weights), dlogits


def _cut(rows, *arrays):
    """Rows cut into chunks; the last one is filled up with rows of zeros, whose weight is zero."""
    fill = -arrays[0].shape[0] % rows
    pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x, shape=(fill, *x.shape[1:]))]) if fill else x
    return tuple(pad(x).reshape(-1, rows, *x.shape[1:]) for x in arrays)


def _shapes(weigh: Weigh, controls) -> Sums:
    """Shapes of the sums, which differ by what `weigh` reports."""
    row = jax.ShapeDtypeStruct((1,), jnp.float32)
    terms, scalars = Terms(row, row, row, row), jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), controls)
    found = jax.eval_shape(weigh, terms, row, scalars)
    return jax.eval_shape(_summed, terms, found, row)


def _zero_sums(static: _Static, weights, controls) -> Sums:
    return jax.tree.map(lambda _: jnp.zeros_like(weights, shape=()), _shapes(static.weigh, controls))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _local(static, student, teacher, labels, weights, controls) -> Sums:
    def one(sums, chunk):
        x, y, labels, weights = chunk
        found, _ = _weighed(static, (x, student[1]), (y, teacher[1]), labels, weights, controls)
        return jax.tree.map(jnp.add, sums, found), None

    return lax.scan(
        one, _zero_sums(static, weights, controls), _cut(static.rows, student[0], teacher[0], labels, weights)
    )[0]


def _forward(static, student, teacher, labels, weights, controls):
    (hidden, head), (their_hidden, their_head) = student, teacher

    def one(carry, chunk):
        sums, dhead = carry
        x, y, labels, weights = chunk
        found, dlogits = _weighed(static, (x, head), (y, their_head), labels, weights, controls)
        dlogits = dlogits.astype(x.dtype)
        dhead += dot(x, dlogits, (0,), (0,))
        return (jax.tree.map(jnp.add, sums, found), dhead), dot(dlogits, head, (1,), (1,)).astype(x.dtype)

    init = (_zero_sums(static, weights, controls), jnp.zeros_like(head, dtype=jnp.float32))
    (sums, dhead), dhidden = lax.scan(one, init, _cut(static.rows, hidden, their_hidden, labels, weights))
    dhidden = dhidden.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return sums, ((dhidden, dhead.astype(head.dtype)), teacher, weights, controls)


def _backward(static, saved, cotangents: Sums):
    (dhidden, dhead), teacher, weights, controls = saved
    scale = cotangents.total  # the rest are metrics
    student = dhidden * scale.astype(dhidden.dtype), dhead * scale.astype(dhead.dtype)
    nothing = functools.partial(jax.tree.map, jnp.zeros_like)
    return student, nothing(teacher), None, nothing(weights), nothing(controls)


_local.defvjp(_forward, _backward)
