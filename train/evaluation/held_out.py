"""Held-out loss, and the objective's other metrics, on rows that are never trained on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from train.batches import Feed
from train.config import RunConfig
from train.evaluation.decisions import decision_metrics
from train.objectives.base import Context, Objective
from train.step import eval_step


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The first `run.eval_batches` batches of the held-out rows, always the same ones; fewer if there are fewer."""

    feed: Feed
    num_batches: int

    @classmethod
    def of(cls, config: RunConfig) -> "HeldOut":
        """Raises InputError where there is not one batch."""
        feed = Feed.open(config, "eval")
        return cls(feed, _num_batches(config, feed))

    def measure(self, objective: Objective) -> Callable[[Maverick, Context], dict[str, Any]]:
        """`(model, context) -> {"eval_loss": nats per label, ..., "eval_tokens": labels}`."""
        step = jax.jit(functools.partial(eval_step, objective=objective))

        def measured(model: Maverick, context: Context) -> dict[str, Any]:
            totals: dict[str, jax.Array] | None = None
            with self.feed.batches(0, self.num_batches) as batches:
                for batch in batches:
                    sums = step(model, batch, context)
                    totals = sums if totals is None else jax.tree.map(jax.numpy.add, totals, sums)
            assert totals is not None
            sums = jax.device_get(totals)
            # sums over batches, then one division: the mean over labels, not over batches
            metrics = objective.evaluation_metrics(sums) | decision_metrics(sums, self.feed.train)
            found = {f"eval_{name}": value for name, value in metrics.items()}
            return {**found, "eval_tokens": int(sums["weight"])}

        return measured


def _num_batches(config: RunConfig, held_out: Feed) -> int:
    rows = held_out.train.num_rows()
    if rows < config.data.batch_size:
        raise InputError(
            f"data.held_out_fraction: {rows} sequences are held out, less than one batch of {config.data.batch_size}; "
            "raise it, lower data.batch_size, or set run.eval_every: 0"
        )
    return min(config.run.eval_batches, rows // config.data.batch_size)
