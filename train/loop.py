"""The training loop: the order of updates, metrics and hooks. It knows nothing about models or data.

For each update `n` from `start + 1` to `stop`, in this order:

1. take a batch and dispatch the update: the host does not wait for it;
2. ask each hook, in their order, whether it is due after update `n`;
3. fetch the metrics of update `n - 1`, which is what the host waits for: one update is always queued on the device;
4. only if some hook is due: fetch the metrics of update `n` too, then run the hooks that are due, in their order.

So every metric up to `n` is delivered before state `n` is saved, and a run that dies and resumes from state `n` has all
of them. State `n` is the state after `n` updates.

In a profiler trace, step 1 is the annotation "train" with its number, and a call of a hook has the name of its class,
such as `Evaluation` or `Checkpoint`.

At the end of the loop, or after a MaverickError, the hooks are closed and finish their work. After any other exception,
such as the death of another process, they are not closed, because waiting could take forever.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from maverick_jax.errors import MaverickError, disk_failures
from train.goodput import timeline
from train.goodput.timeline import Phase, Timeline
from train.rollouts.source import BatchSource


class Hook:
    """Something done beside training. `on_state` and `close` run on every process of the job, in the same order."""

    every: int = 0
    """Steps between two calls of `on_state`; 0: never."""
    phase: Phase = "step"
    """The class of wall time that `on_state` and `close` take (`train.goodput.ledger`)."""

    def due(self, step: int) -> bool:
        """Whether `on_state` is wanted after update `step`. Called exactly once per update; must not block."""
        return self.every > 0 and step % self.every == 0

    def on_state(self, step: int, state) -> None:
        """`state` is donated to the next update: copy what must stay."""

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        """`metrics` are NumPy values of update `step`; `seconds` its wall time without the time of hooks."""

    def close(self) -> None:
        """Finish what was begun."""


def fit(step: Callable, state, batches: BatchSource, *, start: int, stop: int, hooks: Sequence[Hook] = ()):
    """The state after update `stop`, from the state after update `start`. See the module for the order.

    step: jitted `(state, batch) -> (state, metrics)`, metrics a flat dict of arrays, replicated; may donate `state`.
    batches: asked for the batch of update `start + 1` first. Raises what the hooks raise.
    """
    clock = timeline.current()
    with clock.phase("step", start):
        try:
            with disk_failures():
                state = _run(step, state, batches, start, stop, hooks, clock)
        except MaverickError:
            _close(hooks, clock)
            raise
        _close(hooks, clock)
    return state


def _run(step, state, batches: BatchSource, start: int, stop: int, hooks: Sequence[Hook], clock: Timeline):
    delivery = _Delivery(hooks, clock)
    clock.is_idle = delivery.is_done
    for number in range(start + 1, stop + 1):
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            clock.fetching = since = time.perf_counter()
            batch = batches(number, state)
            if batch is None:
                raise RuntimeError(f"the data ended before update {number} of {stop}")
            ready, clock.fetching = time.perf_counter(), None
            if delivery.is_done():
                clock.waited(ready - since)
            state, metrics = step(state, batch)
            clock.blocked += time.perf_counter() - ready
        due = [hook for hook in hooks if hook.due(number)]
        delivery.put(number, metrics, batches.metrics())
        if due:
            delivery.flush()
            for hook in due:
                with jax.profiler.TraceAnnotation(type(hook).__name__), clock.phase(hook.phase):
                    hook.on_state(number, state)
            delivery.restart_clock()
    delivery.flush()
    return state


class _Delivery:
    """Hands the metrics of each update to the hooks when the next update has been dispatched."""

    def __init__(self, hooks: Sequence[Hook], clock: Timeline):
        self._hooks, self._clock = hooks, clock
        self._waiting: tuple[int, dict, Mapping[str, Any]] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        self._since = time.perf_counter()

    def is_done(self) -> bool:
        """Whether the devices have done every update that was dispatched."""
        return self._waiting is None or all(value.is_ready() for value in self._waiting[1].values())

    def put(self, number: int, metrics: dict[str, jax.Array], of_batch: Mapping[str, Any]) -> None:
        for value in metrics.values():
            value.copy_to_host_async()
        self.flush()
        self._waiting = (number, metrics, of_batch)

    def flush(self) -> None:
        if self._waiting is None:
            return
        (number, metrics, of_batch), self._waiting = self._waiting, None
        waiting = time.perf_counter()
        values = jax.device_get(metrics) | of_batch
        now = time.perf_counter()
        self._clock.blocked += now - waiting
        self._clock.updated(number)
        seconds = now - self._since
        self.restart_clock()
        for hook in self._hooks:
            hook.on_metrics(number, values, seconds)


def _close(hooks: Sequence[Hook], clock: Timeline) -> None:
    for hook in reversed(hooks):
        with clock.phase(hook.phase):
            hook.close()
