"""Directions of updates, scaled by parameter."""

from collections.abc import Mapping
from typing import Any

import optax


def scaled_direction(
    direction: optax.GradientTransformation, factors: Mapping[str, float]
) -> optax.GradientTransformation:
    """`direction` with the updates of the arrays named in `factors` multiplied by them; its state is unchanged. Decay,
    which comes after, is not scaled: its share of a weight per update stays the learning rate times the decay."""
    if not factors:
        return direction

    def update(updates, state, params=None):
        named: Any
        named, state = direction.update(updates, state, params)
        return {name: u * factors[name] if name in factors else u for name, u in named.items()}, state

    return optax.GradientTransformation(direction.init, update)
