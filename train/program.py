"""The compiled programs of a run. Compiled ahead of its first step, the step is one program for all of them: a batch of
another shape is an error, never a second compilation."""

import ctypes
import functools
from collections.abc import Callable

import jax
import numpy as np

from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import ShardingRules
from train.objectives import Objective
from train.optimizers.config import Optimizer
from train.state import TrainState, init_state, state_with
from train.step import train_step


def fresh_state(seed: int, config: ModelConfig, rules: ShardingRules, **parts) -> TrainState:
    """The state before the first step, made in parts on the mesh that is set; `parts` as of `state_with`."""
    init = functools.partial(init_state, config=config, rules=rules, **parts)
    # it runs once: on a CPU, half the compile time is worth more than code that is a little better
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    state = jax.jit(init, compiler_options=options)(np.uint32(seed))
    return_freed_memory()
    return state


def state_of(model: Maverick, seed: int, **parts) -> TrainState:
    """The state before the first step of a model that exists, on the mesh that is set; `parts` as of `state_with`."""
    state = jax.jit(functools.partial(state_with, **parts), donate_argnums=0)(model, np.uint32(seed))
    return_freed_memory()
    return state


def compile_step(
    state: TrainState, batch: dict, objective: Objective, optimizer: Optimizer, references: dict[str, Maverick]
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """`train_step` for states and batches like these (arrays, or their shapes), whose state is donated, beside the
    frozen models `references`."""
    step = functools.partial(train_step, objective=objective, optimizer=optimizer)
    program = jax.jit(step, donate_argnums=0).lower(state, batch, references).compile()
    return_freed_memory()
    return lambda state, batch: program(state, batch, references)


def return_freed_memory() -> None:
    """Give the operating system back what the compiler has freed, which glibc would keep: hundreds of MiB that would
    otherwise stay beside the run's own peak for good. Elsewhere does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
