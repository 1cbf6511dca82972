"""Names the updates that the step refused, and the data that they were to learn from."""

import logging
import math
from typing import Any, Literal

import jax
import numpy as np

from maverick_jax import events
from maverick_jax.errors import NonFiniteBudgetSpent
from train.faults.config import GuardConfig
from train.faults.rollback import NONE, ROLLBACKS, GoBack, Rollbacks
from train.faults.spikes import SCORE
from train.loop import Hook
from train.metrics_writer import MetricsWriter

log = logging.getLogger(__name__)

Reason = Literal["non_finite", "spike"]
REFUSED_SINCE = "refused_since"
"""Key, in the metadata of a checkpoint, of the update from which on all were refused."""
_SAID = {"non_finite": "loss or gradients are not finite", "spike": "a spike"}


class BadUpdates(Hook):
    """Logs each refused update, and writes a line of it: `step`, `refused` (the reason), `rows` (the first and the last
    row of its batch in the stream of the data), `refused_loss`, `refused_grad_norm`. Raises GoBack after too many of
    them in a row, and NonFiniteBudgetSpent once the run has gone back too often."""

    def __init__(
        self,
        writer: MetricsWriter,
        config: GuardConfig,
        *,
        batch_size: int,
        rollbacks: Rollbacks = NONE,
        since: int | None = None,
        first: int = 0,
    ):
        """since: the update from which on all were refused, up to the one from which the run resumes. first: the update
        before the first one of the stage, whose rows count from 0."""
        self._writer, self._config, self._rollbacks, self._since = writer, config.rollback, rollbacks, since
        self._batch_size, self._first = batch_size, first
        self._threshold = None if config.spikes is None else np.float32(config.spikes.threshold)

    def record(self) -> dict[str, Any]:
        """What a checkpoint after the last update must tell, for its metadata."""
        done = {ROLLBACKS: self._rollbacks.record()} if self._rollbacks.done else {}
        return done if self._since is None else done | {REFUSED_SINCE: self._since}

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        for one in self._rollbacks.done:
            if one.to + 1 == step:
                rows = self._rows(*one.batches)
                self._writer.write({"step": step, "rolled_back_from": one.at, "left_out_rows": rows})
        if (reason := self._reason(metrics)) is None:
            self._since = None
            return
        self._since = self._since or step
        self._say(step, reason, metrics)
        if self._config is None or step - self._since + 1 < self._config.after:
            return
        if (done := len(self._rollbacks.done)) < self._config.times:
            raise GoBack(self._since, step, self._rollbacks)
        raise NonFiniteBudgetSpent(
            f"step {step}: the updates since step {self._since} were refused, and the run has gone back {done} "
            "time(s), as often as guard.rollback.times allows. Parameters are unharmed; look at the data of these "
            "steps or lower optimizer.learning_rate before going on"
        )

    def _say(self, step: int, reason: Reason, metrics: dict[str, Any]) -> None:
        batch = self._rollbacks.batch_of(step)
        rows, loss, norm = self._rows(batch, batch), float(metrics["loss"]), float(metrics["grad_norm"])
        line = {"step": step, "refused": reason, "rows": rows, "refused_loss": loss, "refused_grad_norm": norm}
        self._writer.write(line | ({SCORE: metrics[SCORE]} if reason == "spike" else {}))
        if jax.process_index() == 0:
            events.record("update_refused", step=step, reason=reason, rows=rows)
            said = f"{_SAID[reason]} of {float(metrics[SCORE]):.1f} deviations" if reason == "spike" else _SAID[reason]
            log.warning(
                "step %d: update refused: %s (loss %.4g, gradient norm %.4g; rows %d to %d of the data)",
                *(step, said, loss, norm, *rows),
            )

    def _rows(self, first: int, last: int) -> list[int]:
        """The first and the last row of these batches."""
        return [(first - self._first) * self._batch_size, (last + 1 - self._first) * self._batch_size - 1]

    def _reason(self, metrics: dict[str, Any]) -> Reason | None:
        """Why the step refused this update, by the rule of `spikes.judged`; None: it did not."""
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            return "non_finite"
        return "spike" if self._threshold is not None and metrics[SCORE] > self._threshold else None
