"""The first state of a stage, made of the last one of the stage before.

Carried over every border: parameters, and the counters of steps, refused updates and tokens. Each of these parts is
carried over if the stage before has all of its arrays: the moments of an optimizer of the same kind, averages, scalars
of an objective of the same kind, objective heads, adapters. Other parts begin anew, as in a run that starts from these
parameters. What spikes are compared with begins anew in every stage.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.averages import averages_of
from maverick_jax.checkpoint.names import ADAPTERS, HEADS, MODEL, OBJECTIVE, OPTIMIZER
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import NoRestorableCheckpoint
from train.config import RunConfig
from train.state import TrainState, state_with

log = logging.getLogger(__name__)


class StageBefore(Exception):
    """The newest intact checkpoint belongs to an earlier stage, which must be trained on first."""


def over_border(
    config: RunConfig, store: CheckpointStore, target: TrainState, arguments: Mapping[str, Any]
) -> tuple[TrainState, bool]:
    """The first state of a stage, like `target`, which has no gate; and whether its adapters are fresh. arguments: as
    of `train.state.state_with`. Raises StageBefore if the last checkpoint of the stage before is missing or damaged."""
    step, place, flat = config.place.first, config.place, names.flatten(target)
    if step not in store.agreed_known_steps():
        store.close()
        raise StageBefore
    try:
        meta = store.meta(step)
    except NoRestorableCheckpoint:  # restoring it says why, and sets it aside
        meta = {"arrays": {}}
    there, why = _found_in(meta, flat, config)
    try:
        found = store.restore({saved: flat[name] for name, saved in there.items()}, step, subset=True)
    except NoRestorableCheckpoint as error:
        store.close()
        raise StageBefore from error
    assert found is not None, step  # it is among the known ones
    carried = {name: found[1][saved] for name, saved in there.items()}
    left = [name for name in flat if name not in carried]
    log.info("stage %s: goes on with the state of step %s", place.name, f"{step:,}")
    for line in why:
        log.info("stage %s: %s", place.name, line)
    if left:
        model = names.unflatten(target.model, {n.removeprefix(MODEL): carried[n] for n in flat if n.startswith(MODEL)})
        carried |= _fresh(model, left, config.run.seed, arguments)
    return names.unflatten(target, carried), any(name.startswith(ADAPTERS) for name in left)


def _fresh(model, wanted: Collection[str], seed: int, arguments: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays of the state of `model` before its first step."""

    def made(model) -> dict[str, jax.Array]:
        state = state_with(model, np.uint32(seed), **arguments)
        flat = names.flatten(dataclasses.replace(state, gate=None))
        return {name: flat[name] for name in wanted}

    return jax.jit(made)(model)


def _found_in(meta: Mapping[str, Any], flat: Mapping[str, Any], config: RunConfig) -> tuple[dict[str, str], list[str]]:
    """Name of an array of the new state -> its name in the checkpoint, for those that are carried over; and a line for
    each part that is not."""
    saved = meta["arrays"]
    ours, theirs = _by_rank(flat), {ranked: name for name, ranked in _by_rank(saved).items()}
    same = lambda name: _is_like(saved.get(theirs.get(ours[name], "")), flat[name])
    averages = set(averages_of(flat).values())
    parts = {
        "moments of the optimizer": [n for n in flat if n.startswith(OPTIMIZER) and n not in averages],
        "averages": [n for n in flat if n in averages],
        "scalars of the objective": [n for n in flat if n.startswith(OBJECTIVE)],
        "adapters": [n for n in flat if n.startswith(ADAPTERS)],
        "objective heads": [n for n in flat if n.startswith(HEADS) and not n.startswith(ADAPTERS)],
    }
    kinds = {
        "moments of the optimizer": (meta.get("optimizer"), config.optimizer.kind),
        "scalars of the objective": (meta.get("objective"), config.objective.kind),
    }
    there, why = {name: name for name in flat if not any(name in part for part in parts.values())}, []
    for what, part in parts.items():
        old, new = kinds.get(what, (None, None))
        if old is not None and old.get("kind", new) != new:
            why += [f"{what}: begin anew, because the kind was {old['kind']} and is {new}"] if part else []
        elif all(map(same, part)):
            there |= {name: theirs[ours[name]] for name in part}
        else:
            why.append(f"{what}: begin anew, because they are of other arrays than in the stage before")
    return there, why


def _is_like(entry: Mapping[str, Any] | None, leaf: Any) -> bool:
    return entry is not None and (tuple(entry["shape"]), entry["dtype"]) == (
        tuple(leaf.shape),
        np.dtype(leaf.dtype).name,
    )


def _by_rank(arrays: Collection[str]) -> dict[str, str]:
    """Each name -> the name in which only those links of the optimizer's chain are counted that have a state: clipping
    has none, so that a chain with it and one without have the same names."""
    links = sorted({int(name.split("/")[1]) for name in arrays if name.startswith(OPTIMIZER)})
    found: dict[str, str] = {}
    for name in arrays:
        ranked = name
        if name.startswith(OPTIMIZER):
            _, link, rest = name.split("/", 2)
            ranked = f"{OPTIMIZER}{links.index(int(link))}/{rest}"
        found[name] = ranked
    return found
