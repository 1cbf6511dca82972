"""Held-out loss, and the objective's other metrics, on rows that are never trained on."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax

from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from train.batches import Feed
from train.config import RunConfig
from train.evaluation.decisions import decision_metrics
from train.objectives.base import Batch, Context, Objective
from train.state import TrainState
from train.step import eval_step


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out batches of an evaluation, always the same ones, from the first rows on.

    Data of one source: `run.eval_batches` batches, or as many as are whole. Data of several: each batch is of one
    source, and all sources have equally many; a source that has fewer leaves the rest to the others. Each source has at
    least one batch, which is filled up with empty rows if the source does not fill it.
    """

    feed: Feed
    batches_of: dict[str, int]
    """Number of batches of each source, by name."""

    @classmethod
    def of(cls, config: RunConfig) -> "HeldOut":
        """Raises InputError where there is not one batch."""
        feed = Feed.open(config, "eval")
        return cls(feed, _num_batches(config, feed))

    @property
    def num_batches(self) -> int:
        return sum(self.batches_of.values())

    def measure(self, objective: Objective) -> Callable[[Maverick, Context], dict[str, Any]]:
        """`(model, context) -> {"eval_loss": nats per label, ..., "eval_tokens": labels}`: means over the labels of all
        batches. With several sources also `eval_source_loss` and `eval_source_tokens`, the same by source."""
        step = jax.jit(functools.partial(eval_step, objective=objective))

        def measured(model: Maverick, context: Context) -> dict[str, Any]:
            of_sources: dict[str, dict[str, jax.Array]] = {}
            for name, opened in self.batches_by_source():
                with opened as batches:
                    for batch in batches:
                        sums = step(model, batch, context)
                        before = of_sources.get(name)
                        of_sources[name] = sums if before is None else jax.tree.map(jax.numpy.add, before, sums)
            totals = functools.reduce(functools.partial(jax.tree.map, jax.numpy.add), of_sources.values())
            return self._reported(objective, *jax.device_get((totals, of_sources)))

        return measured

    def measure_states(
        self, objective: Objective, used: Callable[[TrainState], Maverick], references: dict[str, Maverick]
    ) -> Callable[[TrainState], dict[str, Any]]:
        """As `measure`, of the model that `used` takes from a train state."""
        measured = self.measure(objective)
        context = lambda state: Context(state.step, state.objective, references, state.heads, state.model)
        return lambda state: measured(used(state), context(state))

    def batches_by_source(self) -> Iterator[tuple[str, AbstractContextManager[Iterator[Batch]]]]:
        """Each source's name and its batches, to be entered."""
        for name, feed in self._feeds.items():
            yield name, feed.batches(0, self.batches_of[name])

    @functools.cached_property
    def _feeds(self) -> dict[str, Feed]:
        if len(self.batches_of) == 1:
            return dict.fromkeys(self.batches_of, self.feed)
        alone = self.feed.train.only
        return {name: dataclasses.replace(self.feed, train=alone(name)) for name in self.batches_of}

    def _reported(self, objective: Objective, sums: dict[str, Any], of_sources: dict[str, Any]) -> dict[str, Any]:
        # sums over batches, then one division: the mean over labels, not over batches
        metrics = objective.evaluation_metrics(sums) | decision_metrics(sums, self.feed.train)
        found = {f"eval_{name}": value for name, value in metrics.items()}
        if len(of_sources) > 1:
            labels = {name: int(part["weight"]) for name, part in of_sources.items()}
            losses = {n: objective.evaluation_metrics(part)["loss"] for n, part in of_sources.items() if labels[n]}
            found |= {"eval_source_loss": losses, "eval_source_tokens": labels}
        return {**found, "eval_tokens": int(sums["weight"])}


def _num_batches(config: RunConfig, held_out: Feed) -> dict[str, int]:
    rows, size = held_out.train.num_rows(), config.data.batch_size
    if rows < size:
        raise InputError(
            f"data.held_out_fraction: {rows} sequences are held out, less than one batch of {size}; raise it, lower "
            "data.batch_size, or set run.eval_every: 0"
        )
    whole = {source.name: max(1, source.plan.num_rows // size) for source in held_out.train.sources}
    return dict(zip(whole, even_shares(config.run.eval_batches, list(whole.values())), strict=True))


def even_shares(wanted: int, available: Sequence[int]) -> list[int]:
    """How many of `wanted` things each takes of those that it has: as equally many as possible, the first taking what
    is left over, and each at least one."""
    shares = [1] * len(available)
    while sum(shares) < min(wanted, sum(available)):
        least = min(share for share, most in zip(shares, available, strict=True) if share < most)
        shares[next(i for i, n in enumerate(shares) if n == least and n < available[i])] += 1
    return shares
