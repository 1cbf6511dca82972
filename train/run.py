"""The entry of a run: reads its config, joins data and model, and trains from where the run stands."""

import dataclasses
import json
import logging
import os
import pathlib
import platform
import sys
import threading
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import jax

from maverick_jax.accounting.devices import device_of
from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.initialization.from_model import initial_weights
from maverick_jax.precision import for_backend
from maverick_jax.settings.strict_yaml import dump
from maverick_jax.sharding import make_mesh
from train import hooks
from train.batches import Feed
from train.config import RunConfig, check_against_mesh, check_vocabulary, read_config, resolved
from train.evaluate import HeldOut
from train.faults.processes import exit_code_of, initialize_from_environment, leave
from train.faults.watchdog import Watchdog
from train.identity import metadata, refuse_other_run
from train.loop import Hook, fit
from train.metrics_writer import MetricsWriter, check_sinks
from train.objectives.next_token import Head
from train.optimizers.config import Optimizer
from train.program import compile_step, fresh_state, state_of
from train.rollouts.on_policy import with_own_samples
from train.state import TrainState, abstract_state
from train.teachers.references import (
    Found,
    check_references,
    find_references,
    fingerprints,
    heads_of,
    load_references,
    missing_references,
)

log = logging.getLogger(__name__)


def main(path_or_name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Trains the config to its last step, resuming what its run directory holds. Returns what `--json` prints.

    Raises MaverickError subclasses, whose `exit_code` is the process's; in a job of several processes an error ends
    this process at once instead, because the others may never reach the ordinary way out.
    """
    config = read_config(path_or_name, overrides)
    initialize_from_environment()
    try:
        make_references(config)
        return _run(config)
    except BaseException as error:
        code = exit_code_of(error)
        if code is not None and jax.distributed.is_initialized():
            print(error, file=sys.stderr)
            leave(code)
        raise


def make_references(config: RunConfig) -> None:
    """Trains what the objective's models are made by, where they are not there yet."""
    for making in missing_references(config):
        _run(making)


def _run(config: RunConfig) -> dict[str, Any]:
    run_dir = config.run.directory
    check_sinks(config.logging)
    sizes = config.mesh.resolve(jax.device_count())
    check_against_mesh(config, sizes)
    feed = Feed.open(config)
    check_vocabulary(config, feed.train.tokenizer.vocab_size)
    held_out = HeldOut.of(config) if config.run.eval_every else None
    beside = find_references(config)
    check_references(beside, feed.train.tokenizer, sizes)
    about = metadata(config, feed.train.fingerprint, fingerprints(beside) | feed.beside)
    use_compilation_cache()
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        parts = StateParts.of(config, beside)
        store = CheckpointStore(run_dir / "checkpoints", config.checkpoint)
        refuse_other_run(config, about, store)
        state = _restore(parts, store, mesh)
        start = int(state.step)
        if start >= config.run.steps:
            log.info("%s is complete: %d of %d steps", run_dir, start, config.run.steps)
            return {"run_dir": str(run_dir), "step": start}
        if jax.process_index() == 0:
            _describe(config, feed, sizes, run_dir)
        references = load_references(beside, mesh)
        used = lambda state: parts.optimizer.selection.with_adapters(state.model, state.heads)
        step = compile_step(state, feed.abstract_batch(), config.objective, parts.optimizer, references)
        if (own := config.objective.own_samples()) is not None:
            about_run = {"seed": config.run.seed, "start": start, "end": feed.train.tokenizer.eos_id}
            step = with_own_samples(step, own, state, feed.abstract_batch(), used=used, **about_run)
        measure = held_out and held_out.measure(config.objective, references)
        evaluate = measure and (lambda state: measure(used(state)))
        alongside = _hooks(config, store, about, evaluate, start)
        with feed.batches(start, config.run.steps) as batches:
            state = fit(step, state, batches, start=start, stop=config.run.steps, hooks=alongside)
        return {"run_dir": str(run_dir), "step": int(state.step)}


@dataclasses.dataclass(frozen=True)
class StateParts:
    """What decides the train state: its shapes, and its values before the first step."""

    config: RunConfig
    optimizer: Optimizer
    heads: tuple[Head, ...]

    @classmethod
    def of(cls, config: RunConfig, references: Mapping[str, Found]) -> "StateParts":
        return cls(config, config.optimizer.build(config.run.steps), heads_of(config, references))

    def arguments(self) -> dict[str, Any]:
        rules = self.config.mesh.sharding_rules()
        return {"config": for_backend(self.config.model.network), "rules": rules, **self.beside()}

    def beside(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "objective": self.config.objective, "heads": self.heads}

    def fresh(self) -> TrainState:
        return fresh_state(self.config.run.seed, **self.arguments())


def _restore(parts: StateParts, store: CheckpointStore, mesh) -> TrainState:
    """The newest state that verifies, onto this mesh whatever the one it was saved from; else a fresh one."""
    target = abstract_state(mesh, **parts.arguments())
    found = store.restore(names.flatten(target))
    if found is not None:
        return names.unflatten(target, found[1])
    if (start := parts.config.model.start) is None:
        if frozen := parts.optimizer.selection.frozen(parts.config.model.network):
            log.warning(
                "%s: random numbers, and not trained; model.init_from says where weights are", ", ".join(frozen)
            )
        return parts.fresh()
    log.info("starting from the weights of %s", start.path)
    seed = parts.config.run.seed
    return state_of(initial_weights(target.model, start, seed), seed, **parts.beside())


def _describe(config: RunConfig, feed: Feed, sizes: dict[str, int], run_dir: pathlib.Path) -> None:
    """`config.yaml`, `environment.json` and the tokenizer, beside what they describe."""
    run_dir.mkdir(parents=True, exist_ok=True)
    _replace(run_dir / "config.yaml", dump(resolved(config)))
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    environment = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "mesh": sizes,
        "data": feed.train.fingerprint,
        "parameters": config.model.num_parameters(),
        "active_parameters": config.model.num_active_parameters(),
        "train_flops_per_token": train_flops_per_token(config.model, config.data.sequence_length),
    }
    _replace(run_dir / "environment.json", json.dumps(environment, indent=2))
    feed.train.tokenizer.save(run_dir)


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _hooks(config: RunConfig, store: CheckpointStore, about: dict[str, Any], evaluate, start: int) -> list[Hook]:
    """In the order in which they run after a step; a save comes after the lines it must cover."""
    run, logging_config, run_dir = config.run, config.logging, config.run.directory
    writer = MetricsWriter(run_dir, logging_config, step=start)
    device = device_of(jax.devices()[0].device_kind)
    lines = hooks.TrainingLines(
        writer,
        every=logging_config.every,
        last_step=run.steps,
        tokens_per_step=config.data.batch_size * config.data.sequence_length,
        flops_per_token=train_flops_per_token(config.model, config.data.sequence_length),
        peak_flops=device.peak_flops * jax.device_count() if device else None,
        told=config.objective.line,
    )
    save = hooks.Checkpoint(store, lambda step, state: (names.flatten(state), about), last_step=run.steps)
    found: list[Hook] = [lines]
    if logging_config.progress:
        found.append(hooks.Progress(every=logging_config.every, start=start, stop=run.steps))
    found.append(hooks.NonFiniteBudget(run.skip_budget))
    if logging_config.profile_start:
        first, steps = logging_config.profile_start, logging_config.profile_steps
        found.append(hooks.ProfilerTrace(run_dir / "profile", first=first, steps=steps))
    if logging_config.watchdog_seconds:
        found.append(Watchdog(logging_config.watchdog_seconds, run_dir))
    if evaluate is not None:
        found.append(hooks.Evaluation(evaluate, writer, every=run.eval_every, last_step=run.steps))
    found.append(save)
    if threading.current_thread() is threading.main_thread():
        found.append(hooks.Preemption(save))
    return found


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs in a directory of this user's alone: they are trusted code.

    `JAX_COMPILATION_CACHE_DIR` chooses another place; empty turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir:
        return
    root = os.environ.get("MAVERICK_CACHE") or pathlib.Path.home() / ".cache" / "maverick-jax"
    directory = pathlib.Path(root) / "compiled"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid() or directory.stat().st_mode & 0o077:
        log.warning("not using the compilation cache %s: others may write there", directory)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX's limit of 1 s leaves out the many small programs of a save and an evaluation: seconds at every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
