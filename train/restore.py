"""Finds the state from which a run starts: its newest checkpoint, else the weights at `model.init_from`, else random
weights."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.names import ADAPTERS, HEADS
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.huggingface.peft import PeftAdapter
from maverick_jax.initialization.from_model import initial_weights
from maverick_jax.model_source import CHECKPOINTS
from maverick_jax.precision import for_platform
from train.carried import over_border
from train.config import RunConfig
from train.faults.spikes import SpikeGate, SpikesConfig
from train.goodput import timeline
from train.objectives.base import Head
from train.optimizers.base import Optimizer
from train.state import TrainState, abstract_state, fresh_state, state_of
from train.teachers.references import Found, heads_of

log = logging.getLogger(__name__)

SPIKES = "spikes"
"""Key of the gate's values in the metadata of a checkpoint."""


@dataclasses.dataclass(frozen=True)
class StateParts:
    """The parts that determine the shapes of the train state and its values before the first step."""

    config: RunConfig
    optimizer: Optimizer
    heads: tuple[Head, ...]

    @classmethod
    def of(cls, config: RunConfig, references: Mapping[str, Found]) -> "StateParts":
        selection = config.trainable.selection(config.run.seed)
        since, steps = config.place.scheduled
        optimizer = config.optimizer.build(steps, config.model.network, selection, since)
        return cls(config, optimizer, heads_of(config, references))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `init_state`."""
        rules = self.config.mesh.sharding_rules()
        return {"config": for_platform(self.config.model.network), "rules": rules, **self.state_arguments()}

    def state_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `state_with`."""
        spikes = self.config.guard.spikes
        return {"optimizer": self.optimizer, "objective": self.config.objective, "heads": self.heads, "spikes": spikes}

    def fresh(self) -> TrainState:
        return fresh_state(self.config.run.seed, **self.arguments())


def stage_to_train(config: RunConfig) -> RunConfig:
    """The first stage of the run that its checkpoints do not have whole; the last one of a complete run."""
    *earlier, last = config.in_stages
    if not earlier:
        return last
    store = CheckpointStore(config.run.directory / CHECKPOINTS, config.checkpoint, read_only=True)
    reached = max(store.agreed_steps(store.known_steps), default=0)
    return next((stage for stage in earlier if reached < stage.run.steps), last)


def store_of(config: RunConfig) -> CheckpointStore:
    """The checkpoints of the run. The last one of each stage is kept."""
    ends = [stage.run.steps for stage in config.in_stages]
    return CheckpointStore(config.run.directory / CHECKPOINTS, config.checkpoint, kept=ends)


def restore_or_start(parts: StateParts, store: CheckpointStore, mesh: Mesh) -> TrainState:
    """The newest checkpoint that passes verification, restored onto `mesh`, which may differ from the mesh that saved
    it; else a fresh state. The first state of a stage after the first is made of the last one of the stage before.

    Raises StageBefore if the newest intact checkpoint belongs to an earlier stage."""
    target = abstract_state(mesh, **parts.arguments())
    bare, first = dataclasses.replace(target, gate=None), parts.config.place.first
    with timeline.phase("restore"):
        found = store.restore(names.flatten(bare), since=first + 1 if first else 0)
    if found is not None:
        return _with_gate(names.unflatten(bare, found[1]), target.gate, parts.config.guard.spikes, found[2])
    if first:
        with timeline.phase("restore"):
            state, fresh = over_border(parts.config, store, bare, parts.state_arguments())
        state = _with_gate(state, target.gate, parts.config.guard.spikes, {})
        return _with_first_adapters(parts, state) if fresh else state
    if (start := parts.config.start) is None:
        if frozen := parts.optimizer.selection.frozen(parts.config.model.network):
            log.warning(
                "%s: frozen at random values; set model.init_from to start from trained weights", ", ".join(frozen)
            )
        return _with_first_adapters(parts, parts.fresh())
    log.info("starting from the weights of %s", start.path)
    seed = parts.config.run.seed
    state = state_of(initial_weights(target.model, start, seed), seed, **parts.state_arguments())
    return _with_first_adapters(parts, state)


def contents_of(state: TrainState, metadata: dict[str, Any]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Arrays and metadata of a checkpoint, from which `restore_or_start` makes the state again."""
    of_gate = {} if state.gate is None else {SPIKES: state.gate.record()}
    return names.flatten(dataclasses.replace(state, gate=None)), metadata | of_gate


def _with_gate(
    state: TrainState, target: SpikeGate | None, config: SpikesConfig | None, meta: dict[str, Any]
) -> TrainState:
    """The state with the gate that `config` asks for, filled as far as the checkpoint's metadata tell."""
    if target is None or config is None:
        return state
    recent, count = target.with_record(meta.get(SPIKES, {}))
    threshold = np.asarray(config.threshold, np.float32)
    gate = dataclasses.replace(
        target,
        recent=_placed(recent, target.recent),
        count=_placed(count, target.count),
        threshold=_placed(threshold, target.threshold),
    )
    return dataclasses.replace(state, gate=gate)


def _with_first_adapters(parts: StateParts, state: TrainState) -> TrainState:
    """The state with the factors at `trainable.lora.init_from`, if that is given, in place of fresh ones. Raises
    InputError if they do not fit the model and the targets."""
    lora, model = parts.config.trainable.lora, parts.config.model.network
    if lora is None or lora.init_from is None:
        return state
    log.info("starting from the adapters of %s", lora.init_from)
    first, prefix = PeftAdapter.at(lora.init_from).factors(model), ADAPTERS.removeprefix(HEADS)
    heads = names.flatten(state.heads)
    there, here = set(first), {name.removeprefix(prefix) for name in heads if name.startswith(prefix)}
    if differ := sorted(there ^ here):
        what = "has no adapter of" if differ[0] in here else "also has an adapter of"
        raise InputError(f"trainable.lora.targets: {lora.init_from} {what} {differ[0].rpartition('/')[0]}")
    taken = {prefix + name: _placed(x, heads[prefix + name]) for name, x in first.items()}
    return dataclasses.replace(state, heads=names.unflatten(state.heads, heads | taken))


def _placed(x: np.ndarray, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """x with the dtype and sharding of `like`; each process places its own shards."""
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: x[index].astype(like.dtype))
