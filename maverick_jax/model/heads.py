"""Heads that judge trajectories: a reward at the end of each, and what is wrong with single turns.

They read hidden states after the final norm, in float32, and lie beside the model in checkpoints, in no export.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from maverick_jax.ops.linear import linear
from maverick_jax.param import stored
from maverick_jax.sharding import ShardingRules

SCORES, TURN_BIAS = "scores", "turn_bias"
"""Names of the heads: [D, 1 + labels], the reward first, and [labels]."""


class Judgements(NamedTuple):
    """What the heads say at each token."""

    reward: jax.Array
    """float32[B, T]: the reward, in the unit of a Bradley-Terry model; meant for the last token of a trajectory."""
    turns: jax.Array
    """float32[B, T, labels]: a logit for each label; meant for the last tokens of the assistant's turns."""


def judgements(hidden: jax.Array, heads: Mapping[str, nnx.Param], rules: ShardingRules) -> Judgements:
    """The judgements after hidden [B, T, D]."""
    hidden = reshard(hidden, rules("batch", "length", None))
    found = linear(hidden.astype(jnp.float32), *stored(heads[SCORES], rules, jnp.float32))
    bias, _ = stored(heads[TURN_BIAS], rules, jnp.float32)
    return Judgements(found[..., 0], found[..., 1:] + bias.astype(jnp.float32)[None, None, :])
