"""Periods of layers one after the other, some of them several times (`model.loops`).

The repeated periods run in a loop around their own scan, with the same slice of the stacked weights, so that their
gradients add up once per time. From the second time on they read x + gain * (what they read the first time).
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import LOOPS
from maverick_jax.model.layers import Period, Seen
from maverick_jax.reasoning import Loops

_DRAWS = 0x10095
"""Seed of the draws."""
Once = Callable[[jax.Array, Period], tuple[jax.Array, Seen]]
"""Runs one period."""


class Looped(Protocol):
    """What a model with periods has."""

    config: ModelConfig
    periods: Period
    loop_gain: nnx.Param


def through_periods(model: Looped, once: Once, x: jax.Array, drawn: jax.Array | None = None) -> tuple[jax.Array, Seen]:
    """x [B, T, D] through all periods of a model that repeats some, and what they saw, with a leading axis of periods:
    of repeated ones the last time, and the mean of their router statistics. `drawn` int32[]: how often they run, at
    most `times`."""
    loops, part = model.config.loops, lambda first, end: jax.tree.map(lambda leaf: leaf[first:end], model.periods)
    assert loops is not None
    first, end = loops.periods
    found = []
    if first:
        x, seen = jax.lax.scan(once, x, part(0, first))
        found.append(seen)
    x, seen = _repeated(model, loops, lambda x: jax.lax.scan(once, x, part(first, end)), x, drawn)
    found.append(seen)
    if end < model.config.num_periods:
        x, seen = jax.lax.scan(once, x, part(end, model.config.num_periods))
        found.append(seen)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def stretches(config: ModelConfig) -> list[tuple[int, int]]:
    """The periods [first, end) that run one after the other, in order; those of `loops` occur once per time."""
    whole = config.num_periods
    if config.loops is None:
        return [(0, whole)]
    first, end = config.loops.periods
    found = [(0, first), *[(first, end)] * config.loops.times, (end, whole)]
    return [part for part in found if part[0] < part[1]]


def again(x: jax.Array, first: jax.Array, gain: nnx.Param) -> jax.Array:
    """What repeated periods read after they have run: x [B, T, D] with their `first` input."""
    return x + gain[...].astype(x.dtype)[None, None, :] * first


def _repeated(model: Looped, loops: Loops, run, x: jax.Array, drawn: jax.Array | None) -> tuple[jax.Array, Seen]:
    """`run` as often as `loops` or `drawn` says."""
    first = x
    like = jax.eval_shape(run, x)[1]
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, out_sharding=a.sharding.spec), like)

    def one(carry, number):
        def turn(carry):
            x, seen = carry
            x, new = run(jnp.where(number > 0, again(x, first, model.loop_gain), x))
            stats = jax.tree.map(jnp.add, seen.stats, new.stats)
            return x, new._replace(stats=stats)

        if drawn is None:
            return turn(carry), None
        return jax.lax.cond(number < drawn, turn, lambda carry: carry, carry), None

    (x, seen), _ = jax.lax.scan(one, (x, nothing), jnp.arange(loops.times, dtype=jnp.int32))
    count = loops.times if drawn is None else drawn
    mean = lambda total: (total / count).astype(total.dtype)
    return x, seen._replace(stats=jax.tree.map(mean, seen.stats))


def loop_draws(config: ModelConfig, step: jax.Array, microbatches: int) -> dict[str, jax.Array]:
    """What a training step adds to its batch if `model.loops.drawn`: int32[microbatches], how often repeated periods
    run, 1 to `times`, the same for all; a function of the step alone."""
    if config.loops is None or not config.loops.drawn:
        return {}
    key = jax.random.fold_in(jax.random.key(_DRAWS), step)
    times = jax.random.randint(key, (), 1, config.loops.times + 1, jnp.int32)
    return {LOOPS: jnp.broadcast_to(times, (microbatches,))}
