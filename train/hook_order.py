"""The hooks of a run, in the order in which they run after a step."""

import threading
from collections.abc import Callable
from typing import Any

import jax

from maverick_jax.accounting.devices import device_of
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.target import traced_kind
from train import hooks
from train.config import RunConfig
from train.config_files import public
from train.faults.non_finite import NonFiniteBudget
from train.faults.preemption import Preemption
from train.faults.watchdog import Watchdog
from train.loop import Hook
from train.metrics_writer import MetricsWriter
from train.notices import Notices


def hooks_of(
    config: RunConfig,
    store: CheckpointStore,
    metadata: dict[str, Any],
    evaluate: Callable | None,
    start: int,
    flops_per_token: float | None = None,
) -> list[Hook]:
    """The hooks of a run. Saving comes after the metrics that a checkpoint covers, and preemption after saving, which
    it may request.

    metadata: stored in every checkpoint. evaluate: `state -> metrics`; None: no evaluation. start: the step from which
    the run resumes. flops_per_token: of a step, for `mfu`; None: unknown. A run outside the main thread has no
    preemption hook, because signal handlers need the main thread.
    """
    run, logging_config, run_dir = config.run, config.logging, config.run.directory
    writer = MetricsWriter(run_dir, logging_config, step=start, require_held=store.require_held, public=public(config))
    save = hooks.Checkpoint(store, lambda step, state: (names.flatten(state), metadata), last_step=run.steps)
    found: list[Hook] = [_training_lines(config, writer, flops_per_token), Notices(config.objective)]
    if logging_config.progress:
        found.append(
            hooks.ProgressBar(every=logging_config.every, start=start, stop=run.steps, tokens_per_step=_tokens(config))
        )
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


def _training_lines(config: RunConfig, writer: MetricsWriter, flops_per_token: float | None) -> hooks.TrainingLines:
    mesh = jax.sharding.get_mesh()
    device = device_of(traced_kind())
    return hooks.TrainingLines(
        writer,
        every=config.logging.every,
        last_step=config.run.steps,
        tokens_per_step=_tokens(config),
        flops_per_token=flops_per_token,
        peak_flops=device.peak_flops * mesh.size if device else None,
        format_metrics=config.objective.training_metrics,
    )


def _tokens(config: RunConfig) -> int:
    return config.data.batch_size * config.data.sequence_length
