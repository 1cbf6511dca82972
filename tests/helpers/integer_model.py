"""A plugin with an objective and an optimizer whose numbers are integers, so that no sum depends on its order.

A run ends in the same bits on any layout of processes and devices, or it has lost, repeated or exchanged an update.

Every parameter is a multiple of 1/1024 between -2 and 2. The gradient of an element is an integer that depends on the
whole batch; the update takes the parameter from one integer to another by a rule in which no two histories are likely
to end alike. All sums stay below 2^24, up to which float32 is exact.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from maverick_jax.model.inputs import Inputs
from train.objectives import OBJECTIVES
from train.objectives.base import Objective
from train.optimizers.base import OPTIMIZERS, OptimizerBase

GRID, RANGE = 1024.0, 4096
"""Parameters per unit, and how many values one can have."""


def integers(x: jax.Array) -> jax.Array:
    """int32: the place of each parameter on the grid. One that was never updated counts as 0."""
    return jnp.round(x * GRID).astype(jnp.int32)


def digest(model) -> jax.Array:
    """float32[]: an integer that depends on every parameter."""
    parts = [jnp.sum(integers(x) * 7 + 3, dtype=jnp.int32) for x in jax.tree.leaves(model)]
    return jnp.mod(sum(parts, jnp.int32(0)), 1 << 20).astype(jnp.float32)


@OBJECTIVES.register
class Integers(Objective):
    """Every parameter has the same gradient, from 0 to 7, which depends on all tokens and their places; those of the
    embedding table have the number of times that their token occurs besides."""

    kind: Literal["integers"] = "integers"
    nans: list[int] = []
    """Batches whose loss is not a number, by the sums of their tokens."""
    spikes: list[int] = []
    """Batches whose loss is far too high."""

    def totals(self, batch):
        return super().totals(batch) | {"sum": jnp.sum(batch["tokens"], dtype=jnp.int32)}

    def loss(self, model, batch, totals, context):
        tokens, places = batch["tokens"], batch["positions"]
        mixed = (tokens * 40503 + places * 30011 + batch["segment_ids"] * 271) % 8191
        total = jnp.sum(mixed, dtype=jnp.int32) % 8
        everywhere = sum((jnp.sum(x) for x in jax.tree.leaves(model)), jnp.float32(0))
        counted = jnp.sum(model.embed_inputs(Inputs.of(batch)))
        loss = total.astype(jnp.float32) * everywhere + counted
        return loss, {"total": total.astype(jnp.float32), "router": None}

    def metrics(self, model, sums, totals, context):
        among = lambda sums: jnp.any(jnp.array([-1, *sums], jnp.int32) == totals["sum"])
        loss = jnp.where(among(self.spikes), 10_000.0, sums["total"])
        return {"loss": jnp.where(among(self.nans), jnp.nan, loss), "digest": digest(model)}

    def evaluate(self, model, batch, context):
        found = jnp.sum(batch["tokens"], dtype=jnp.int32).astype(jnp.float32)
        return {"loss": found, "digest": digest(model), "weight": jnp.float32(1)}


@OPTIMIZERS.register
class IntegerSteps(OptimizerBase):
    """n, g -> (5 n + 3 g + m + 1) mod RANGE, where m, the state, follows the gradients too."""

    kind: Literal["integers"] = "integers"

    def direction(self, declared):
        def init(params):
            return {name: jnp.zeros_like(x, dtype=jnp.int32) for name, x in params.items()}

        def update(updates, state, params=None):
            assert params is not None
            moved = {name: (3 * state[name] + g.astype(jnp.int32)) % RANGE for name, g in updates.items()}
            down = {}
            for name, g in updates.items():
                n = integers(params[name])
                new = (5 * n + 3 * g.astype(jnp.int32) + moved[name] + 1) % RANGE - RANGE // 2
                down[name] = (n - new).astype(jnp.float32) / GRID
            return down, moved

        return optax.GradientTransformation(init, update)

    def moment_bytes(self, parameter):
        return 4
