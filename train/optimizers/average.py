"""An exponential average of the trained parameters, kept beside the optimizer's moments."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from maverick_jax.settings.section import Section

BYTES_PER_ELEMENT = 4


class AverageConfig(Section):
    """`optimizer.average`: the average of the trained parameters over updates, for `maverick export --average`."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Weight of the average before an update. In update n, counted from 1, it is at most (1 + n) / (10 + n), so that
    the first values are soon forgotten. Refused updates do not count."""


class AverageState(NamedTuple):
    """The name of the field is part of the arrays' names in checkpoints (`maverick_jax.checkpoint.averages`)."""

    count: jax.Array  # int32[]
    average: dict[str, jax.Array]
    """Trained parameters by name, float32."""


def average_weights(decay: float) -> optax.GradientTransformationExtraArgs:
    """Changes no update. It must come last in a chain: it averages the parameters with their updates added, in float32,
    before they are rounded to their dtype."""

    def init(params):
        # a copy, because the parameters themselves are given away in the first step
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(lambda p: jnp.array(p, jnp.float32), params))

    def update(updates, state, params=None, **_):
        count = optax.safe_increment(state.count)
        n = count.astype(jnp.float32)
        kept = jnp.minimum(jnp.float32(decay), (1 + n) / (10 + n))

        def averaged(average, p, u):
            return average + (1 - kept) * (p.astype(jnp.float32) + u.astype(jnp.float32) - average)

        return updates, AverageState(count, jax.tree.map(averaged, state.average, params, updates))

    return optax.GradientTransformationExtraArgs(init, update)
