"""The train state: everything that a run carries from one step to the next."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.param import normal, param
from maverick_jax.sharding import ShardingRules
from maverick_jax.target import traced_platform
from train.compilation import return_freed_memory
from train.faults.spikes import SpikeGate, SpikesConfig
from train.objectives.base import Head, Objective
from train.optimizers.base import Optimizer


@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` updates were attempted, and `skipped` of them were not applied. `tokens` is a 64-bit count as [high, low]
    words."""

    step: jax.Array  # int32[]
    skipped: jax.Array  # int32[]
    tokens: jax.Array  # uint32[2]
    model: Maverick
    opt_state: optax.OptState
    objective: dict[str, jax.Array]
    """The objective's scalars, float32[]; none for pretraining."""
    heads: dict[str, nnx.Param]
    """Objective heads; none for pretraining."""
    gate: SpikeGate | None = None
    """What spikes are compared with; None: nothing is. Checkpoints have it in their metadata."""


jax.tree_util.register_dataclass(TrainState)

_HEADS = 0x68656164
"""Folded into the seed, so that heads and model get different random numbers."""


def init_state(seed, *, config: ModelConfig, rules: ShardingRules, **parts) -> TrainState:
    """A fresh TrainState. Under `jax.set_mesh` and inside jit, every array is created with its final sharding. `parts`:
    as in `state_with`."""
    model = Maverick(config, rules, rngs=nnx.Rngs(params=jax.random.key(seed)))
    return state_with(model, seed, **parts)


def state_with(
    model: Maverick,
    seed,
    *,
    optimizer: Optimizer,
    objective: Objective,
    heads: tuple[Head, ...] = (),
    spikes: SpikesConfig | None = None,
) -> TrainState:
    """The state of `model` before the first step; `seed` determines the initial heads."""
    rngs = nnx.Rngs(params=jax.random.fold_in(jax.random.key(seed), _HEADS))
    made = {h.name: param(rngs, h.shape, h.axes, normal(h.std), model.rules, model.config.param_dtype) for h in heads}
    zero, tokens = jnp.zeros((), jnp.int32), jnp.zeros((2,), jnp.uint32)
    gate = None if spikes is None else SpikeGate.empty(spikes)
    return TrainState(zero, zero, tokens, model, optimizer.init(model, made), objective.init(), made, gate)


def fresh_state(seed: int, config: ModelConfig, rules: ShardingRules, **parts) -> TrainState:
    """The state before the first step, created sharded on the current mesh. `parts`: as in `state_with`."""
    init = functools.partial(init_state, config=config, rules=rules, **parts)
    # it runs once, so on a CPU half the compile time matters more than slightly faster code
    options = {"xla_backend_optimization_level": 1} if traced_platform() == "cpu" else None
    state = jax.jit(init, compiler_options=options)(np.uint32(seed))
    return_freed_memory()
    return state


def state_of(model: Maverick, seed: int, **parts) -> TrainState:
    """The state of an existing model before the first step, on the current mesh. `parts`: as in `state_with`."""
    state = jax.jit(functools.partial(state_with, **parts), donate_argnums=0)(model, np.uint32(seed))
    return_freed_memory()
    return state


def abstract_state(mesh: Mesh, **parts) -> TrainState:
    """Shapes, dtypes and shardings of `init_state(**parts)`, for restoring a checkpoint."""

    def placed(x):
        spec = PartitionSpec() if x.sharding is None else x.sharding.spec
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, jax.eval_shape(functools.partial(init_state, **parts), 0))


def add_tokens(tokens: jax.Array, more: jax.Array) -> jax.Array:
    """64-bit sum in two uint32 words, [high, low]; float32 would stop counting at 2^24."""
    low = tokens[1] + more.astype(jnp.uint32)
    carry = (low < tokens[1]).astype(jnp.uint32)
    return jnp.stack([tokens[0] + carry, low])
