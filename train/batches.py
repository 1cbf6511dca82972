"""Batches of a run as global arrays: which rows this process reads, and where they go."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec

from data.rows import placement
from data.rows.dataset import Dataset, Split, open_dataset
from data.rows.packing import Row
from data.rows.weighing import CHOICES, KINDS
from train.config import RunConfig
from train.teachers.stored_targets import TargetsOf, open_targets


@dataclasses.dataclass(frozen=True)
class Feed:
    """The data of a run. Batches are made under the run's mesh."""

    config: RunConfig
    train: Dataset
    beside: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of what the rows carry beside the data, by its key of the objective."""

    @classmethod
    def open(cls, config: RunConfig, split: Split = "train") -> "Feed":
        """Tokenises and packs what is not cached. In a job of several processes each waits for or does the same.
        Where the objective learns from a teacher's targets on disk, rows to train on carry them; raises InputError for
        targets that are not of this run."""
        data = open_dataset(config.data, split, seed=config.run.seed)
        kept = config.objective.offline()
        if split != "train" or kept is None:
            return cls(config, data)
        targets = open_targets(config, data)
        return cls(
            config,
            data.with_fields(TargetsOf(targets, kept.fields)),
            {"targets": targets.digest, "teacher": targets.header.teacher},
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """[A, B/A, T]: microbatches, sequences of each, tokens of each."""
        A = self.config.optimizer.accumulation_steps
        return A, self.config.data.batch_size // A, self.config.data.sequence_length

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch, under the mesh that is set."""
        sharding = self._sharding()
        row = self._wanted(self.train.row(0))
        shape = lambda x: (*self.shape, *x.shape[1:])
        return {name: jax.ShapeDtypeStruct(shape(x), x.dtype, sharding=sharding) for name, x in row.items()}

    @contextlib.contextmanager
    def batches(self, start: int, stop: int) -> Iterator[Iterator[dict[str, jax.Array]]]:
        """The batches of steps [start, stop), each a dict of global arrays [A, B/A, T, ...]."""
        sharding = self._sharding()
        rows = placement.rows_of_process(sharding, self.shape)
        place = lambda local: placement.place(local, rows, sharding, self.shape)
        with self.train.batches(rows, self.config.data.batch_size, start, stop - start) as found:
            yield (jax.tree.map(place, self._wanted(local)) for local in found)

    def _wanted(self, fields: Row) -> Row:
        """Without what labels are, unless the objective asks."""
        reads = self.config.objective.reads_kinds
        return {name: x for name, x in fields.items() if reads or name not in (KINDS, CHOICES)}

    def _sharding(self) -> NamedSharding:
        spec = PartitionSpec(None, *self.config.mesh.sharding_rules()("batch", "length"))
        return NamedSharding(jax.sharding.get_mesh(), spec)
