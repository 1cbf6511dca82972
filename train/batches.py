"""Makes the batches of a run: each process reads the rows and fields that it needs and places them in global arrays."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data.rows import placement
from data.rows.course import StageData, open_course
from data.rows.dataset import Dataset, Split, open_dataset
from data.rows.fields import FIELDS, TARGET, TILES, Row, chosen
from data.targets.format import layout
from maverick_jax.config import ModelConfig
from maverick_jax.images import num_patches
from maverick_jax.row_split import RowSplit
from train.config import RunConfig
from train.faults.rollback import NONE, Rollbacks
from train.latents import LatentCheck
from train.reasoning import check_marks, check_room, with_marks
from train.teachers.references import readers_of_rows
from train.teachers.stored_targets import TargetsOf, open_targets


@dataclasses.dataclass(frozen=True)
class Feed:
    """The data of a run. Batches are made under the run's mesh."""

    config: RunConfig
    train: Dataset
    fields: tuple[str, ...]
    """The fields of a batch, which the objective reads."""
    models: dict[str, ModelConfig]
    """The models that read the rows, by their keys in the run's config (`readers_of_rows`)."""
    beside: dict[str, str] = dataclasses.field(default_factory=dict)
    """Digests of stored fields that are joined to the rows: `targets`, the folder's, and `teacher`, the model's."""
    first: int = 0
    """Batches of the run before those of these rows: those of the stages before."""

    @classmethod
    def open(cls, config: RunConfig, split: Split = "train") -> "Feed":
        """Opens the data of `split`. Data that is not cached is tokenized and packed; each process of a job does this
        or waits until it is done. Training rows get the objective's stored fields. Raises InputError if their folder
        does not fit this run."""
        objective, models = config.objective, readers_of_rows(config)
        if split != "train":
            fields = with_marks(models.values(), objective.evaluation_fields())
            return cls(config, open_dataset(config.data, split, seed=config.run.seed), fields, models)
        place, first = config.place, config.place.first
        course = place.course or [StageData(config.data, place.steps * config.data.batch_size)]
        data = open_course(course, place.number, seed=config.run.seed)
        objective.check_data({source.name: source.store.meta for source in data.sources})
        fields = with_marks(models.values(), objective.fields())
        for key, model in models.items():
            check_room(data, model.reasoning_heads, key)
        if (stored := objective.stored_fields()) is None:
            return cls(config, data, fields, models, first=first)
        targets = open_targets(config, stored, data)
        return cls(
            config,
            data.with_fields(TargetsOf(targets, stored.names)),
            fields,
            models,
            {"targets": targets.digest, "teacher": targets.header.teacher},
            first,
        )

    @property
    def split(self) -> RowSplit:
        """How devices share a row under the current mesh."""
        T = self.config.data.sequence_length
        return RowSplit.of(T, self.config.mesh.sharding_rules(), jax.sharding.get_mesh().shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[A, B/A, T]: number of microbatches, rows per microbatch, tokens per row."""
        A = self.config.optimizer.accumulation_steps
        return A, self.config.data.batch_size // A, self.config.data.sequence_length

    def abstract_batch(self, step: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the batch of `step` under the current mesh; those of other steps may have
        room for other numbers of tiles. Raises ValueError if a row of the data lacks a field or has it in another shape
        or dtype."""
        if not self.train.sources:  # the run makes its rows itself
            return abstract_batch(self.config, jax.sharding.get_mesh(), self.fields)
        tiles = self.train.tile_budgets(self.config.data.batch_size)(max(0, step - self.first))
        batch = abstract_batch(self.config, jax.sharding.get_mesh(), self.fields, tiles)
        row = self.train.row(0)
        for name, x in chosen(row, self.fields).items():
            if (x.shape, x.dtype) != (batch[name].shape[2:], batch[name].dtype):
                expected = f"{batch[name].dtype}{list(batch[name].shape[2:])}"
                raise ValueError(f"field {name!r} of a row is {x.dtype}{list(x.shape)}; expected {expected}")
        return batch

    @contextlib.contextmanager
    def batches(self, start: int, stop: int, rollbacks: Rollbacks = NONE) -> Iterator[Iterator[dict[str, jax.Array]]]:
        """The batches of the updates `start + 1` to `stop` after these roll-backs, each a dict of global arrays
        [A, B/A, ...], rows in the order of `split`."""
        rows, placed = self._own_rows(), self.placer()
        with contextlib.ExitStack() as opened:

            def found() -> Iterator[Row]:
                for piece in rollbacks.pieces(start, stop):
                    opened.close()
                    begin = piece.start - self.first
                    batches = self.train.batches(rows, self.config.data.batch_size, begin, len(piece))
                    yield from opened.enter_context(batches)

            yield (placed(local) for local in found())

    def placer(self) -> Callable[[Row], dict[str, jax.Array]]:
        """A function that makes a batch of this process's rows of it, each field [rows, ...]."""
        rows = self._own_rows()
        latents = [LatentCheck(model.latent, key) for key, model in self.models.items()]

        def placed(local: Row) -> dict[str, jax.Array]:
            check_cells(local, self.split, self.config.model)
            check_tiles(local, self.config.model)
            for check in latents:
                check(local)
            for key, model in self.models.items():
                check_marks(local, model.reasoning_heads, key)
            names = (*self.fields, TILES) if TILES in local else self.fields
            return {name: self._place(name, x, rows) for name, x in chosen(local, names).items()}

        return placed

    def _own_rows(self) -> list[int]:
        """Which rows of a batch this process has."""
        return placement.rows_of_process(self._sharding("tokens"), self.shape)

    def _place(self, name: str, local: np.ndarray, rows: list[int]) -> jax.Array:
        shape = self.shape[: 1 + len(FIELDS[name].axes)]
        if len(shape) == 3:
            local = self.split.split(local, 1)
        return placement.place(local, rows, self._sharding(name), shape)

    def _sharding(self, name: str) -> NamedSharding:
        return _sharding(self.config, name, jax.sharding.get_mesh())


def check_cells(rows: Row, split: RowSplit, model: ModelConfig) -> None:
    """Raises ValueError unless the attention chunks of all segments of `rows` [n, T] lie within blocks of `split`, as
    layers with chunked attention assume (`Inputs.in_cells`)."""
    size, before = model.attention_chunk_size, np.arange(split.block, split.length, split.block) - 1
    if split.ways == 1 or size is None or model.local_attention != "chunked":
        return
    ids, positions = rows["segment_ids"], rows["positions"]
    crossing = (ids[:, before] == ids[:, before + 1]) & (ids[:, before] > 0)
    bad = crossing & (positions[:, before] // size == positions[:, before + 1] // size)
    if bad.any():
        row, border = np.argwhere(bad)[0]
        raise ValueError(
            f"row {row} of a batch: an attention chunk of {size} tokens lies on both sides of place "
            f"{before[border] + 1}, where mesh.context={split.ways} divides rows; expected segments as data.cell places"
        )


def check_tiles(rows: Row, model: ModelConfig) -> None:
    """Raises ValueError unless `rows` [n, T] have as many features of whole tiles as `<|patch|>` tokens. A row may have
    fewer pictures than there is room for."""
    if (vision := model.vision) is None:
        if TILES in rows:
            raise ValueError("a batch has tiles, and the model has no image encoder; expected none")
        return
    wanted, room = num_patches(rows["tokens"], vision.image_token_index), 0
    if TILES in rows:
        room, *shape = rows[TILES].shape[1:]
        expected = [vision.num_channels, vision.image_size, vision.image_size]
        if shape != expected:
            raise ValueError(f"tiles of a batch are {shape}; expected {expected}, which the image encoder reads")
    P = vision.tokens_per_tile
    bad = (wanted > room * P) | (wanted % P > 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"row {row} of a batch has {wanted[row]} <|patch|> tokens and {room} tiles; expected {P} tokens for each "
            "of its tiles"
        )


def abstract_batch(
    config: RunConfig, mesh: Mesh, fields: Iterable[str], tiles: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch of `fields` on `mesh`, from the config alone. `tiles`: of each row's
    pictures."""
    A, T, stored = config.optimizer.accumulation_steps, config.data.sequence_length, config.objective.stored_fields()
    of_targets = {}
    if stored is not None:
        top_k, tail_samples, dtype = (stored.header[key][1] for key in ("top_k", "tail_samples", "dtype"))
        of_targets = layout(config.model.vocab_size, top_k, tail_samples, dtype, T)
    found, of_model = {}, {"layers": config.model.num_moe_layers, "k": config.model.num_experts_per_tok}
    for name in fields:
        field = FIELDS[name]
        trailing = tuple(of_model[axis] for axis in field.trailing) if field.source == "rollouts" else ()
        here = field.dtype, ((T,) * (len(field.axes) - 1) + trailing)
        dtype, shape = of_targets[name.removeprefix(TARGET)] if field.source == "stored" else here
        sharding = _sharding(config, name, mesh)
        full = (A, config.data.batch_size // A, *shape)
        found[name] = jax.ShapeDtypeStruct(full, np.dtype(dtype.newbyteorder("=")), sharding=sharding)
    if tiles and (vision := config.model.vision):
        shape = (tiles, vision.num_channels, vision.image_size, vision.image_size)
        full = (A, config.data.batch_size // A, *shape)
        found[TILES] = jax.ShapeDtypeStruct(full, FIELDS[TILES].dtype, sharding=_sharding(config, TILES, mesh))
    return found


def _sharding(config: RunConfig, name: str, mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, *config.mesh.sharding_rules()(*FIELDS[name].axes)))
