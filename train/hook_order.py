"""The hooks of a run, in the order in which they run after a step."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

from maverick_jax.accounting.devices import device_of
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.target import Target, traced_kind, traced_platform
from train import announce, hooks
from train.config import RunConfig
from train.config_files import public
from train.evaluation.during import Evaluating
from train.faults.bad_updates import REFUSED_SINCE, BadUpdates
from train.faults.non_finite import NonFiniteBudget
from train.faults.preemption import Preemption
from train.faults.replicas import ReplicaCheck
from train.faults.rollback import Rollbacks
from train.faults.watchdog import Watchdog
from train.goodput import timeline
from train.goodput.energy import EnergyMeter
from train.goodput.live import LiveGoodput
from train.goodput.pace import Pace
from train.goodput.prometheus import PrometheusFile
from train.loop import Hook
from train.metrics_writer import MetricsWriter
from train.notices import Notices
from train.restore import contents_of
from train.state import TrainState


def hooks_of(
    config: RunConfig,
    store: CheckpointStore,
    metadata: dict[str, Any],
    evaluated: Sequence[Evaluating],
    start: int,
    replay: Callable[[int, Sequence[Hook]], Any],
    flops_per_token: float | None = None,
) -> list[Hook]:
    """The hooks of a run. The pace of processes comes before the line that has it, saving after the metrics that a
    checkpoint covers, and preemption after saving, which it may request.

    metadata: stored in every checkpoint. evaluated: the kinds of evaluation. start: the step from which
    the run resumes. replay: as of `ReplicaCheck`. flops_per_token: of a step, for `mfu`; None: unknown. A run outside
    the main thread has no preemption hook, because signal handlers need the main thread.
    """
    run, logging_config, run_dir = config.run, config.logging, config.run.directory
    found, beside, prometheus = _of_wall_time(config, start)
    writer = MetricsWriter(
        run_dir, logging_config, step=start, require_held=store.require_held, public=public(config.whole),
        beside=[prometheus], stage=config.place.name,
    )  # fmt: skip
    place = config.place
    begun = start in store.steps() and start > place.first
    since = store.meta(start).get(REFUSED_SINCE) if begun else None
    rollbacks = Rollbacks.at(store, start, place.first)
    bad = BadUpdates(
        writer, config.guard, batch_size=config.data.batch_size, rollbacks=rollbacks, since=since, first=place.first
    )
    contents = lambda step, state: contents_of(state, metadata | bad.record())
    save = hooks.Checkpoint(store, contents, last_step=run.steps)
    found += [_training_lines(config, writer, flops_per_token, beside), Notices(config.objective)]
    if logging_config.progress:
        found.append(
            hooks.ProgressBar(every=logging_config.every, start=start, stop=run.steps, tokens_per_step=_tokens(config))
        )
    found += [bad, NonFiniteBudget(run.skip_budget)]
    if logging_config.profile_start:
        first, steps = logging_config.profile_start, logging_config.profile_steps
        found.append(hooks.ProfilerTrace(run_dir / "profile", first=first, steps=steps))
    watchdog: list[Hook] = []
    if logging_config.watchdog_seconds:
        watchdog.append(Watchdog(logging_config.watchdog_seconds, run_dir))
        found += watchdog
    for one in evaluated:
        found.append(hooks.Evaluation(one.evaluate, writer, every=one.every, last_step=run.steps, keys=one.keys))
    if every := config.guard.compare_every:
        found.append(ReplicaCheck(_parameters, writer, every=every, save=save, replay=replay, watched=watchdog))
    found.append(save)
    if threading.current_thread() is threading.main_thread():
        found.append(Preemption(save, within=config.guard.stop_within))
    return found


def _parameters(state: TrainState) -> dict[str, jax.Array]:
    """What replicas are compared by."""
    return names.flatten({"model": state.model, "heads": state.heads})


def _of_wall_time(
    config: RunConfig, start: int
) -> tuple[list[Hook], list[Callable[[], dict[str, Any]]], PrometheusFile]:
    """Hooks, values for training lines, and a sink, that say where time and energy go."""
    clock, every = timeline.current(), config.logging.every
    goodput, energy = LiveGoodput(config.run.directory, clock, start), config.logging.energy
    meter = EnergyMeter(
        energy, device_of(traced_kind()), platform=traced_platform(), count=Target.local().count,
        alone=jax.process_count() == 1,
    )  # fmt: skip
    announce.energy(meter.source, Target.local().count)
    clock.beside, clock.each_beat = meter.line, meter.measure
    pace = [Pace(clock, every=every)] if jax.process_count() > 1 else []

    def used() -> dict[str, Any]:
        kwh = [part for part in (goodput.before.kwh, meter.kwh()) if part is not None]
        return energy.line(sum(kwh) if kwh else None)

    beside = [goodput.line, used, *(hook.line for hook in pace)]
    return [*pace], beside, PrometheusFile(config.run.directory, goodput.seconds)


def _training_lines(
    config: RunConfig,
    writer: MetricsWriter,
    flops_per_token: float | None,
    beside: Sequence[Callable[[], dict[str, Any]]],
) -> hooks.TrainingLines:
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
        beside=beside,
    )


def _tokens(config: RunConfig) -> int:
    return config.data.batch_size * config.data.sequence_length
