"""Short runs inside one process: programs are compiled once for all rates, seeds and data of a model."""

import functools
from collections.abc import Iterable

import jax
import numpy as np

from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import ShardingRules, single_device_mesh
from train.batches import Feed
from train.config import RunConfig
from train.optimizers.base import Optimizer
from train.state import init_state
from train.step import train_step


class ShortRuns:
    """Runs of one model, on one device and without a run directory. They may differ in `run.seed`, the data, and the
    learning rate with its schedule."""

    def __init__(self, config: RunConfig):
        """config: of one of the runs."""
        parts = {"optimizer": _optimizer(config), "objective": config.objective}
        step = functools.partial(train_step, **parts)
        self._init = jax.jit(functools.partial(init_state, config=config.model, rules=ShardingRules(), **parts))
        self._step = jax.jit(lambda state, batch, rates: step(state, batch, {}, rates), donate_argnums=0)

    def train(self, config: RunConfig, batches: Iterable[dict[str, jax.Array]]) -> tuple[Maverick, np.ndarray]:
        """The model after one update of each batch, and the loss of each update."""
        with jax.set_mesh(single_device_mesh()):
            rates, state, losses = jax.jit(_optimizer(config).rates), self._init(config.run.seed), []
            for batch in batches:
                state, metrics = self._step(state, batch, rates(state.step, state.skipped))
                losses.append(metrics["loss"])
        return state.model, np.array(losses)


def placed_batches(config: RunConfig, split: str, count: int) -> list[dict[str, jax.Array]]:
    """The first batches of a split, on the device."""
    with jax.set_mesh(single_device_mesh()):
        feed = Feed.open(config, "train" if split == "train" else "eval")
        with feed.batches(0, count) as found:
            return list(found)


def _optimizer(config: RunConfig) -> Optimizer:
    return config.optimizer.build(config.run.steps, config.model, config.trainable.selection())
