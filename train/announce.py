"""What a run says before it trains: itself, its model, mesh and data, the step it goes on from, and doubts about its
config. Informational lines of a job come from process 0 alone: `train.faults.processes` leaves out the others'."""

import json
import logging
from collections.abc import Collection
from typing import Any

from jax.sharding import Mesh
from pydantic import ValidationError

from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml
from train.advice import warnings
from train.batches import Feed
from train.config import RunConfig
from train.config_files import public

log = logging.getLogger(__name__)


def job(config: RunConfig, mesh: Mesh) -> None:
    """Says what is known before data is opened."""
    run, model = config.run, config.model
    place, of = config.place, len(config.in_stages)
    stage = f", stage {place.name} ({place.number + 1} of {of}): {_count(place.steps, 'step')}" if place.name else ""
    log.info("run %s in %s: %s%s", run.name, run.directory, _count(config.whole.run.steps, "step"), stage)
    log.info(
        "model: %s parameters, %s active per token; %s",
        f"{model.num_parameters():,}",
        f"{model.num_active_parameters():,}",
        _count(model.num_hidden_layers, "layer"),
    )
    log.info("mesh: %s", of_mesh(mesh))
    for line in warnings(config):
        log.warning("%s", line)


def data(config: RunConfig, feed: Feed) -> None:
    """Says which rows there are to train on."""
    rows, length, batch = feed.train.num_rows(), config.data.sequence_length, config.data.batch_size
    if not rows:
        log.info("data: made by the run itself: %s rows (%s tokens) a step", f"{batch:,}", f"{batch * length:,}")
        return
    epochs = config.place.steps * batch / rows
    log.info(
        "data: %s: %s of %s tokens; %s rows (%s tokens) a step, %s epochs in the %s",
        ", ".join(config.data.sources),
        _count(rows, "row"),
        f"{length:,}",
        f"{batch:,}",
        f"{batch * length:,}",
        f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}",
        "stage" if config.place.name else "run",
    )


def energy(source: str, count: int) -> None:
    """Says where the power of the job's devices is known from; nothing where it is unknown."""
    if source:
        log.info("energy: power of %s from %s", _count(count, "device"), source)


def start(config: RunConfig, step: int, skipped: int) -> None:
    """Says from which step the run goes on, and what is another than when it was last started. `skipped`: updates of
    the `step` attempted ones that were refused."""
    run, changed = config.run, changes(config) if step else {}
    listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
    if step >= run.steps:
        longer = f"{step} steps, more than run.steps ({run.steps})"
        done = longer if step > run.steps else f"{step} of {run.steps} steps"
        log.info("%s is complete: %s", run.directory, done)
        if listed:
            log.warning("%s: no effect on a run that is complete; raise run.steps, or give it its own run.name", listed)
        return
    log.info("training from step %s to %s", f"{step:,}", f"{run.steps:,}")
    if listed:
        log.info("changed since the run was last started: %s", listed)
    if changed and (rates := _rates(config, step - skipped)) is not None:
        among = {key: values for key, values in changed.items() if key == "run.steps" or key.startswith("optimizer.")}
        log.warning(
            "the schedule is another than the saved run's (%s): the learning rate of the next update is %.3g instead "
            "of %.3g; it is %.3g at the end, after step %d",
            ", ".join(f"{key.rpartition('.')[2]} {old} -> {new}" for key, (old, new) in among.items()),
            *rates,
            run.steps,
        )


def changes(
    config: RunConfig, left_out: Collection[str] = ("logging", "mesh", "checkpoint")
) -> dict[str, tuple[Any, Any]]:
    """Old and new value of every key that is another than in the config that the run directory holds. left_out:
    sections that are not compared; by default those of where it runs, and of what it shows and keeps."""
    there = _saved(config)
    if there is None:
        return {}
    there = _by_name(there)
    here = _by_name(public(config.whole))
    found: dict[str, tuple[Any, Any]] = {}
    for section in (here.keys() & there.keys()) - set(left_out):
        _compare(section, there.get(section), here[section], found)
    return {key: found[key] for key in sorted(found) if key not in ("run.dir", "run.hardware")}


def _by_name(config: dict[str, Any]) -> dict[str, Any]:
    """The config with its stages as a mapping."""
    stages = config.get("stages") or ()
    return config | {"stages": {s["name"]: s for s in stages if isinstance(s, dict) and isinstance(s.get("name"), str)}}


def _compare(key: str, old: Any, new: Any, found: dict[str, tuple[Any, Any]]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            _compare(f"{key}.{name}", old[name], new[name], found)
    elif old != new:
        found[key] = old, new


def _saved(config: RunConfig) -> dict[str, Any] | None:
    """The config of the run directory as data; None where there is none that can be read."""
    try:
        data = strict_yaml.read(config.run.directory / "config.yaml").data
    except InputError:
        return None
    return data if isinstance(data, dict) else None


def _rates(config: RunConfig, done: int) -> tuple[float, float, float] | None:
    """Learning rates after `done` updates: of this config and of the saved one, and this one's last. None where both
    have one schedule, or the saved one cannot be read."""
    try:
        saved = _saved(config) or {}
        if config.place.name:
            return None  # several schedules
        optimizer = type(config.optimizer).model_validate_json(json.dumps(saved.get("optimizer")))
        old, new = optimizer.schedule_of(int(saved["run"]["steps"])), config.optimizer.schedule_of(config.run.steps)
    except (ValidationError, KeyError, TypeError, ValueError):
        return None
    ahead = {count: (float(new(count)), float(old(count))) for count in (done, (done + config.run.steps) // 2)}
    if all(one == other for one, other in ahead.values()):
        return None
    return *ahead[done], float(new(config.run.steps - 1))


def of_mesh(mesh: Mesh) -> str:
    """`8 x cpu (data 2 x fsdp 4)`"""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size != 1)
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind} ({axes})" if axes else f"one device ({kind})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
