"""Refuses an update whose loss or gradient norm is far above those of the updates before it.

The gate is a part of the train state. It holds the last values of accepted updates, so that one program decides and
keeps the old state, and no host waits for it.
"""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from maverick_jax.settings.section import Section

LEAST_SPREAD = 0.01
"""A standard deviation below this part of the mean counts as this part of the mean."""
SCORE = "spike_score"
"""The metric of an update: its largest score."""
Watched = Literal["loss", "grad_norm"]


class SpikesConfig(Section):
    """When an update counts as a spike and is refused."""

    window: Annotated[int, Field(ge=2)] = 128
    """Number of accepted updates, the latest, that an update is compared with. Until there are so many, none is a
    spike."""
    threshold: Annotated[float, Field(gt=0)] = 6.0
    """An update is a spike if a watched value is more than so many standard deviations above the window's mean."""
    watch: Annotated[tuple[Watched, ...], Field(min_length=1)] = ("loss", "grad_norm")
    """The values that are watched."""


@dataclasses.dataclass(frozen=True)
class SpikeGate:
    """The values of the last accepted updates; the newest is the last column."""

    recent: jax.Array  # float32[len(watch), window]
    count: jax.Array  # int32[], at most the window
    threshold: jax.Array  # float32[]
    watch: tuple[str, ...]

    @classmethod
    def empty(cls, config: SpikesConfig) -> "SpikeGate":
        recent = jnp.zeros((len(config.watch), config.window), jnp.float32)
        return cls(recent, jnp.zeros((), jnp.int32), jnp.full((), config.threshold, jnp.float32), config.watch)

    def score(self, values: jax.Array) -> jax.Array:
        """float32[]: the largest number of standard deviations by which `values` exceed the window's means; 0 while the
        window is not full."""
        mean = jnp.mean(self.recent, axis=1)
        spread = jnp.maximum(jnp.std(self.recent, axis=1), LEAST_SPREAD * jnp.abs(mean))
        score = jnp.max((values - mean) / jnp.maximum(spread, jnp.finfo(jnp.float32).tiny))
        return jnp.where(self.count >= self.recent.shape[1], score, 0.0)

    def after(self, values: jax.Array, good: jax.Array) -> "SpikeGate":
        """The gate after an update with these values, float32[len(watch)]; a refused one leaves it as it was."""
        moved = jnp.concatenate([self.recent[:, 1:], values[:, None]], axis=1)
        count = jnp.minimum(self.count + 1, self.recent.shape[1])
        return dataclasses.replace(
            self, recent=jnp.where(good, moved, self.recent), count=jnp.where(good, count, self.count)
        )

    # ---- in checkpoints: JSON, so that a resumed run may begin, change or end its watch ------------------------------

    def record(self) -> dict[str, list[float]]:
        """The values of each watched metric, the oldest first."""
        recent, count = jax.device_get((self.recent, self.count))
        return {name: row[len(row) - int(count) :].tolist() for name, row in zip(self.watch, recent, strict=True)}

    def with_record(self, record: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray]:
        """`recent` and `count` of a gate of this shape that holds the newest values of a record."""
        rows, window = self.recent.shape
        values = [record.get(name, []) for name in self.watch]
        recent, kept = np.zeros((rows, window), np.float32), min([window, *map(len, values)])
        for row, of_row in enumerate(values):
            recent[row, window - kept :] = of_row[len(of_row) - kept :]
        return recent, np.asarray(kept, np.int32)


jax.tree_util.register_dataclass(SpikeGate, ["recent", "count", "threshold"], ["watch"])


def judged(
    gate: SpikeGate | None, loss: jax.Array, grad_norm: jax.Array
) -> tuple[jax.Array, SpikeGate | None, dict[str, Any]]:
    """Whether an update is good, bool[]; the gate after it; metrics. Without a gate, an update is good if its loss and
    gradient norm are finite."""
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if gate is None:
        return finite, None, {}
    of = {"loss": loss, "grad_norm": grad_norm}
    values = jnp.stack([of[name].astype(jnp.float32) for name in gate.watch])
    score = jnp.where(finite, gate.score(values), 0.0)
    good = finite & (score <= gate.threshold)
    return good, gate.after(values, good), {SCORE: score}
