"""Hooks of the training loop: lines, progress, profiles, evaluation, checkpoints. Give them to `fit` in the order of
this file: a save comes after what it must cover."""

import collections
import logging
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console
import rich.progress
import rich.text

from maverick_jax.checkpoint.copier import CopyFailed
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.progress import duration, say
from train.evaluation.sentences import sentence
from train.loop import Hook
from train.metrics_writer import MetricsWriter

log = logging.getLogger(__name__)


class _StepSeconds:
    """Mean wall time of updates. A process's first warms up: it counts only where there is no other."""

    def __init__(self, most: int | None = None):
        """most: how many updates count, the latest; None: all since `clear`."""
        self._seconds: collections.deque[float] = collections.deque(maxlen=most)
        self._first = True

    def add(self, seconds: float) -> None:
        if self._first and self._seconds:
            self._seconds.clear()
            self._first = False
        self._seconds.append(seconds)

    def mean(self) -> float:
        return sum(self._seconds) / len(self._seconds)

    def clear(self) -> None:
        self._seconds.clear()
        self._first = False


class TrainingLines(Hook):
    """Writes a training line for every `every`-th update and for the last one."""

    RARE, MOST = ("router_load",), 200
    """Metrics that are large, and the number of lines of a run, about, that have them."""

    def __init__(
        self,
        writer: MetricsWriter,
        *,
        every: int,
        last_step: int,
        tokens_per_step: int,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
        format_metrics: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        beside: Sequence[Callable[[], dict[str, Any]]] = (),
    ):
        """format_metrics: an update's metrics as a training line shows them. beside: further values, on process 0.

        tokens_per_step: of the whole job. peak_flops: of all its devices, per second. None: unknown.

        Metrics: `loss`; `tokens`, the cumulative count, or else steps are multiplied; any others.
        """
        self.writer, self.last_step, self.tokens_per_step = writer, last_step, tokens_per_step
        self._log_every, self._format_metrics, self._beside = every, format_metrics, beside
        self._rarely = every * max(1, math.ceil(last_step / (every * self.MOST)))
        self._peak_tokens = peak_flops / flops_per_token if peak_flops and flops_per_token else None
        self._seconds = _StepSeconds()

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        self._seconds.add(seconds)
        if step % self._log_every and step != self.last_step:
            return
        step_seconds = self._seconds.mean()
        self._seconds.clear()
        rate = self.tokens_per_step / step_seconds
        line = {
            "step": step,
            "loss": metrics["loss"],
            "tokens": _count(metrics["tokens"]) if "tokens" in metrics else step * self.tokens_per_step,
            "tokens_per_second": rate,
            "step_seconds": step_seconds,
            "learning_rate": metrics.get("learning_rate"),
            "grad_norm": metrics.get("grad_norm"),
            "mfu": rate / self._peak_tokens if self._peak_tokens else None,
        }
        shown = self._format_metrics(metrics)
        left_out = self.RARE if step % self._rarely and step != self.last_step else ()
        line |= {name: value for name, value in shown.items() if name not in line and name not in left_out}
        for values in self._beside if jax.process_index() == 0 else ():
            line |= values()
        self.writer.write(line)

    def close(self) -> None:
        self.writer.close()


def _count(words) -> int:
    """A count, whole or as [high, low] words of 32 bits."""
    return int(words) if words.ndim == 0 else int(words[0]) << 32 | int(words[1])


class ProgressBar(Hook):
    """A bar on a terminal, a line per `every` updates elsewhere: loss, learning rate, gradient norm, tokens per second,
    time per step, time left; process 0 only.

    The time left counts evaluations and saves too, as they went so far."""

    def __init__(self, *, every: int, start: int, stop: int, tokens_per_step: int = 0):
        self._log_every, self._stop, self._tokens, self._bar = every, stop, tokens_per_step, None
        self._seconds = _StepSeconds(every)
        self._first: tuple[int, float] | None = None
        self._shown = jax.process_index() == 0
        if self._shown and sys.stderr.isatty():
            columns = "[bold]step {task.completed}/{task.total}", rich.progress.BarColumn(), "{task.fields[left]}"
            self._bar = _BarWithLine(*columns, console=rich.console.Console(stderr=True))
            self._task = self._bar.add_task("", total=stop, completed=start, left="first step")
            self._bar.start()

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        if not self._shown:
            return
        self._first = self._first or (step, time.monotonic())
        self._seconds.add(seconds)
        if self._bar is not None:
            self._bar.line = self._line(metrics)
            self._bar.update(self._task, completed=step, left=self._left(step))
        elif step % self._log_every == 0 or step == self._stop:
            parts = [f"step {step}/{self._stop}", self._line(metrics), self._left(step)]
            say("  ".join(filter(None, parts)))

    def _line(self, metrics: dict[str, Any]) -> str:
        of_step = self._seconds.mean()
        parts = [f"loss {float(metrics['loss']):.4f}"]
        if "learning_rate" in metrics:
            parts.append(f"rate {float(metrics['learning_rate']):.2e}")
        if "grad_norm" in metrics:
            parts.append(f"gradient {float(metrics['grad_norm']):.3g}")
        if self._tokens:
            parts.append(f"{self._tokens / of_step:,.0f} tokens/s")
        return "  ".join([*parts, f"{of_step:.3f} s/step" if of_step < 100 else f"{duration(of_step)}/step"])

    def _left(self, step: int) -> str:
        if step >= self._stop or self._first is None or step <= self._first[0]:
            return ""
        whole = (time.monotonic() - self._first[1]) / (step - self._first[0])
        return f"{duration(whole * (self._stop - step))} left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class _BarWithLine(rich.progress.Progress):
    """A bar with a line of text below it."""

    line = ""

    def get_renderables(self):
        yield self.make_tasks_table(self.tasks)
        yield rich.text.Text(self.line, no_wrap=True, overflow="ellipsis")


class ProfilerTrace(Hook):
    """A `jax.profiler` trace of updates `first` to `first + steps - 1`. The update before `first` must be one of the
    process's own."""

    def __init__(self, directory, *, first: int, steps: int):
        self._directory, self._before, self._last = pathlib.Path(directory), first - 1, first + steps - 1
        self._running = False

    def due(self, step: int) -> bool:
        return step in (self._before, self._last)

    def on_state(self, step: int, state) -> None:
        if step == self._before:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        else:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            log.info("profiler trace is in %s", self._directory)


class Evaluation(Hook):
    """Writes a line of what `evaluate(state)` returns (`eval_loss` and others) every `every` updates and at the end,
    and says it in a sentence. Says once if evaluations take more than `LARGE_PART` of the time."""

    LARGE_PART = 0.25
    phase = "evaluation"

    def __init__(
        self,
        evaluate: Callable[[Any], dict[str, Any]],
        writer: MetricsWriter,
        *,
        every: int,
        last_step: int,
        keys: str = "",
    ):
        """keys: the config keys that say how often and how long it is; empty: those of the held-out loss."""
        self.keys = keys or "run.eval_every is the steps between them, run.eval_batches their length"
        self.evaluate, self.writer, self.every, self.last_step = evaluate, writer, every, last_step
        self._evaluating, self._training, self._times = 0.0, 0.0, 0

    def due(self, step: int) -> bool:
        return super().due(step) or (self.every > 0 and step == self.last_step)

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        self._training += seconds if self._times else 0.0  # counted from the first evaluation on, which compiles

    def on_state(self, step: int, state) -> None:
        started = time.perf_counter()
        result = jax.device_get(self.evaluate(state))
        seconds = time.perf_counter() - started
        self.writer.write({"step": step, **result, "eval_seconds": seconds})
        log.info("step %d: %s", step, sentence(result, seconds))
        self._evaluating += seconds if self._times else 0.0
        self._times += 1
        self._hint(step)

    def _hint(self, step: int) -> None:
        whole = self._evaluating + self._training
        if self._times == 2 and step < self.last_step and self._evaluating > self.LARGE_PART * whole:
            log.warning("evaluations take %.0f%% of the time: %s", 100 * self._evaluating / whole, self.keys)


class Checkpoint(Hook):
    """Saves every `store.config.every` updates and at the end."""

    phase = "save"

    def __init__(self, store: CheckpointStore, contents: Callable[[int, Any], tuple[dict, dict]], *, last_step: int):
        """contents: `(step, state) -> (arrays by name, meta)`."""
        self.store, self.contents, self.last_step = store, contents, last_step
        self.every = store.config.every

    def due(self, step: int) -> bool:
        return super().due(step) or step == self.last_step

    def on_state(self, step: int, state) -> None:
        self.store.save(step, *self.contents(step, state))

    def close(self) -> None:
        try:
            self.store.close()
        except CopyFailed as error:
            if self.last_step in self.store.steps():
                raise  # the run is complete, but not where it should be
            log.error("%s", error)
