"""The hooks of a run, in the order in which they run after a step."""

import threading
from collections.abc import Callable
from typing import Any

import jax

from maverick_jax.accounting.devices import device_of
from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from train import hooks
from train.config import RunConfig
from train.faults.non_finite import NonFiniteBudget
from train.faults.preemption import Preemption
from train.faults.watchdog import Watchdog
from train.loop import Hook
from train.metrics_writer import MetricsWriter


def hooks_of(
    config: RunConfig, store: CheckpointStore, metadata: dict[str, Any], evaluate: Callable | None, start: int
) -> list[Hook]:
    """A save comes after the lines it must cover, a preemption after the save it may ask for.

    metadata: stored in every checkpoint. evaluate: `state -> metrics`; None: no evaluation. start: the step the run
    resumes from. The signal handlers of a preemption need the main thread: elsewhere a run has none.
    """
    run, logging_config, run_dir = config.run, config.logging, config.run.directory
    writer = MetricsWriter(run_dir, logging_config, step=start, require_held=store.require_held)
    save = hooks.Checkpoint(store, lambda step, state: (names.flatten(state), metadata), last_step=run.steps)
    found: list[Hook] = [_training_lines(config, writer)]
    if logging_config.progress:
        found.append(hooks.ProgressBar(every=logging_config.every, start=start, stop=run.steps))
    found.append(NonFiniteBudget(run.skip_budget))
    if logging_config.profile_start:
        first, steps = logging_config.profile_start, logging_config.profile_steps
        found.append(hooks.ProfilerTrace(run_dir / "profile", first=first, steps=steps))
    if logging_config.watchdog_seconds:
        found.append(Watchdog(logging_config.watchdog_seconds, run_dir))
    if evaluate is not None:
        found.append(hooks.Evaluation(evaluate, writer, every=run.eval_every, last_step=run.steps))
    found.append(save)
    if threading.current_thread() is threading.main_thread():
        found.append(Preemption(save))
    return found


def _training_lines(config: RunConfig, writer: MetricsWriter) -> hooks.TrainingLines:
    device = device_of(jax.devices()[0].device_kind)
    return hooks.TrainingLines(
        writer,
        every=config.logging.every,
        last_step=config.run.steps,
        tokens_per_step=config.data.batch_size * config.data.sequence_length,
        flops_per_token=train_flops_per_token(config.model, config.data.sequence_length),
        peak_flops=device.peak_flops * jax.device_count() if device else None,
        format_metrics=config.objective.training_metrics,
    )
