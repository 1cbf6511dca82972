"""Batches of a run as global arrays: which rows this process reads, and where they go."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec

from data import placement
from data.dataset import Dataset, Split, open_dataset
from train.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Feed:
    """The data of a run. Batches are made under the run's mesh."""

    config: RunConfig
    train: Dataset

    @classmethod
    def open(cls, config: RunConfig, split: Split = "train") -> "Feed":
        """Tokenises and packs what is not cached. In a job of several processes each waits for or does the same."""
        return cls(config, open_dataset(config.data, split, seed=config.run.seed))

    def held_out(self) -> "Feed":
        return Feed.open(self.config, "eval")

    @property
    def shape(self) -> tuple[int, int, int]:
        """[A, B/A, T]: microbatches, sequences of each, tokens of each."""
        A = self.config.optimizer.accumulation_steps
        return A, self.config.data.batch_size // A, self.config.data.sequence_length

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch, under the mesh that is set."""
        sharding = self._sharding()
        row = self.train.row(0)
        return {name: jax.ShapeDtypeStruct(self.shape, x.dtype, sharding=sharding) for name, x in row.items()}

    @contextlib.contextmanager
    def batches(self, start: int, stop: int) -> Iterator[Iterator[dict[str, jax.Array]]]:
        """The batches of steps [start, stop), each a dict of global arrays [A, B/A, T]."""
        sharding = self._sharding()
        rows = placement.rows_of_process(sharding, self.shape)
        place = lambda local: placement.place(local, rows, sharding, self.shape)
        with self.train.batches(rows, self.config.data.batch_size, start, stop - start) as found:
            yield (jax.tree.map(place, local) for local in found)

    def _sharding(self) -> NamedSharding:
        spec = PartitionSpec(None, *self.config.mesh.sharding_rules()("batch", "length"))
        return NamedSharding(jax.sharding.get_mesh(), spec)
