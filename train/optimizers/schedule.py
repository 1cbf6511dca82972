"""Learning-rate schedules: warm up linearly, then follow a named shape; and the rate of each parameter."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from maverick_jax.checkpoint import names

RATE = "learning_rate"
"""Name of the learning rate among the rates and metrics of an update."""


def rate_of(role: str) -> str:
    """Name of a role's learning rate, where that is another than `RATE`."""
    return f"{RATE}_{role}"


def learning_rate(
    shape: str, peak: float, warmup_steps: int, total_steps: int, decay_fraction: float, min_ratio: float
) -> optax.Schedule:
    """Learning rate of update number i (0-based) of `total_steps`.

    `constant` holds the peak; `cosine` falls from it to `min_ratio` of it at the end; `wsd` (warmup-stable-decay,
    arXiv 2404.06395) holds it and falls linearly over the last `decay_fraction` of the steps, or over all steps after
    the warmup where those are fewer.
    """
    schedule = _shape(shape, peak, warmup_steps, total_steps, decay_fraction, min_ratio)
    return lambda count: schedule(jnp.asarray(count, jnp.float32))  # optax divides integers by floats


def scale_by_learning_rate(roles: Mapping[str, str]) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate`, but the rate is among `rates`: an argument of the program and no part of it. It
    is that of the array's role (`roles`, by name), if `rates` has one, and otherwise rates["learning_rate"]. The state
    counts updates as Optax's does, so that checkpoints have the same names."""

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, rates, **_):
        def scaled(name: str, u: jax.Array) -> jax.Array:
            down = -rates.get(rate_of(roles.get(name, "")), rates[RATE])
            return down.astype(u.dtype) * u

        updates = names.unflatten(updates, {name: scaled(name, u) for name, u in names.flatten(updates).items()})
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _shape(shape, peak, warmup_steps, total_steps, decay_fraction, min_ratio) -> optax.Schedule:
    warmup = optax.linear_schedule(peak / max(1, warmup_steps), peak, max(1, warmup_steps - 1))
    rest = max(1, total_steps - warmup_steps)
    if shape == "cosine":
        after, start = optax.cosine_decay_schedule(peak, rest, alpha=min_ratio), warmup_steps
    elif shape == "wsd":
        decay = min(max(1, round(total_steps * decay_fraction)), rest)
        stable = optax.constant_schedule(peak)
        start = warmup_steps
        after = optax.join_schedules(
            [stable, optax.linear_schedule(peak, peak * min_ratio, decay)], [max(0, rest - decay)]
        )
    else:
        after, start = optax.constant_schedule(peak), warmup_steps
    return optax.join_schedules([warmup, after], [start]) if warmup_steps else after
