"""The rows of a run: any row of an endless stream, as a pure function of the config and its number."""

import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from data.array_folder import ArrayFolder, build_once, seal, write_array
from data.cache.tokenize_made import tokenize_made
from data.cache.tokenize_pairs import tokenize_pairs
from data.cache.tokenize_pictures import tokenize_pictures
from data.cache.tokenize_text import tokenize_text
from data.cache.tokenize_trajectories import tokenize_trajectories
from data.config import DataConfig
from data.order import MAX_ROWS, derive, shuffled
from data.rows import packing, pairs, two_budgets, windows
from data.rows.fields import FIELDS, TILES, Row
from data.rows.mixture import Mixture, Sequential, Weighted
from data.rows.packing import Documents, Plan
from data.rows.pairs import OfPairs, PairPlan
from data.rows.pipeline import BatchIterator
from data.rows.source_rows import SourceRows
from data.rows.tiles import SourceTiles, TileBudgets, blocks_of, stacked
from data.rows.weighing import OfRuns, OfTexts
from data.rows.windows import Windowed
from data.sources import MadeSource, PictureSource, PreferencesSource, TrajectoriesSource
from data.trajectories.decisions import Decision, balance
from data.trajectories.weights import OutcomeWeights
from maverick_jax.errors import InputError
from maverick_jax.images import decoder_version
from maverick_jax.text import Tokenizer, load_tokenizer

Split = Literal["train", "eval"]
Beside = Callable[[int, Row], Row]
"""(number of a stream row, its fields) -> more fields. Pure, and cheap to pickle."""
ORDER = 1
"""Changes when the same config would give other rows."""

_log = logging.getLogger(__name__)


class Dataset:
    """Rows of all sources, mixed. Cheap to pickle: arrays travel as paths."""

    def __init__(self, sources: Sequence[SourceRows], mixture: Mixture, config: DataConfig, tokenizer: Tokenizer,
                 fingerprint: str):  # fmt: skip
        self.sources, self.tokenizer, self.fingerprint = list(sources), tokenizer, fingerprint
        self.config = config
        self._mixture = mixture
        self._beside: Beside | None = None
        self._end: int | None = None
        self._budgets: dict[int, TileBudgets] = {}

    def num_rows(self, epoch: int = 0) -> int:
        """The sum of the sources' rows in one epoch. (With unequal weights, a stream of that many rows repeats some
        sources and reads others in part.)"""
        return sum(source.plan.num_rows for source in self.sources)

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the stream's rows from each source, by name."""
        return dict(zip([source.name for source in self.sources], self._mixture.shares(), strict=True))

    @property
    def mixture(self) -> Mixture:
        """The source of each row."""
        return self._mixture

    def locate(self, index: int) -> tuple[SourceRows, int]:
        """The source of stream row `index`, and which of its rows that is."""
        if index < 0:
            raise IndexError(f"row {index}: rows count from 0")
        if not self.sources:
            raise InputError("data.sources: none, because the run makes its rows itself; expected one or more to show")
        source, at = self._mixture.locate(index)
        return self.sources[source], at

    def row(self, index: int) -> Row:
        """The fields of stream row `index` (see `data.rows.fields`), but no tiles. Pure."""
        self.locate(index)
        return _RowReader(self)(index)

    def with_fields(self, beside: Beside) -> "Dataset":
        """The same rows, with the additional fields that `beside` returns."""
        found = Dataset(self.sources, self._mixture, self.config, self.tokenizer, self.fingerprint)
        found._beside, found._end = beside, self._end
        return found

    def only(self, name: str) -> "Dataset":
        """The rows of source `name`, each once; the rows after them are empty."""
        source = next(source for source in self.sources if source.name == name)
        found = Dataset([source], Sequential([source.plan.num_rows]), self.config, self.tokenizer, self.fingerprint)
        found._beside, found._end = self._beside, source.plan.num_rows
        return found

    def batches(self, rows: Sequence[int], batch_size: int, start_step: int = 0, num_steps: int | None = None
                ) -> BatchIterator:  # fmt: skip
        """The rows `rows` of the batches from `start_step` on, each field [len(rows), ...]: row g of step s is stream
        row s * batch_size + g. Batches of steps with pictures also have `tiles`, of as many as the step's budget.
        Endless without `num_steps`. Close it, or use it in a `with`."""
        config = self.config
        bytes_of_batch = len(rows) * self.tile_budgets(batch_size).values[-1] * math.prod(config.tiles.tile_shape)
        room = config.tiles.prefetch_bytes // max(config.workers, 1) // max(bytes_of_batch, 1)
        threads = max(1, available_cpus() // max(config.workers, 1))
        return BatchIterator(_BatchReader(self, rows, batch_size, threads), rows, batch_size, start_step, num_steps,
                             workers=config.workers, prefetch=max(1, min(config.prefetch, room)))  # fmt: skip

    def tile_budgets(self, batch_size: int) -> TileBudgets:
        """The tile budget of every step of batches of `batch_size` rows; 0: the step has no pictures."""
        if batch_size not in self._budgets:
            most = max(source.most_tiles for source in self.sources)
            budgets = TileBudgets(_RowReader(self).num_tiles, batch_size, most, self.config.tiles.budgets)
            self._budgets[batch_size] = budgets
        return self._budgets[batch_size]


class _RowReader:
    """`Dataset.row` without the tokenizer, which worker processes do not need and some of which do not pickle."""

    def __init__(self, dataset: Dataset):
        self._sources, self._mixture, self._beside = dataset.sources, dataset._mixture, dataset._beside
        self._end = dataset._end

    def __call__(self, index: int) -> Row:
        if self._is_empty(index):
            return {name: np.full_like(field, FIELDS[name].fill) for name, field in self(0).items()}
        source, at = self._mixture.locate(index)
        row = self._sources[source].row(at)
        return row if self._beside is None else row | self._beside(index, row)

    def num_tiles(self, index: int) -> int:
        if self._is_empty(index):
            return 0
        source, at = self._mixture.locate(index)
        return self._sources[source].num_tiles(at)

    def tiles(self, index: int) -> tuple[SourceTiles | None, packing.Spans]:
        """What `stacked` needs of a row."""
        source, at = self._mixture.locate(index)
        found = self._sources[source]
        return None if self._is_empty(index) else found.tiles, found.pieces(at)

    def _is_empty(self, index: int) -> bool:
        return self._end is not None and index >= self._end


class _BatchReader:
    """The wanted rows of the batch of a step."""

    def __init__(self, dataset: Dataset, rows: Sequence[int], batch_size: int, threads: int):
        self._read, self._rows, self._batch_size = _RowReader(dataset), tuple(rows), batch_size
        self._budgets, self._shape = dataset.tile_budgets(batch_size), dataset.config.tiles.tile_shape
        self._threads = threads

    def __call__(self, step: int) -> Row:
        indices = [step * self._batch_size + row for row in self._rows]
        rows = [self._read(index) for index in indices]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if budget := self._budgets(step):
            batch[TILES] = stacked([self._read.tiles(index) for index in indices], budget, self._shape, self._threads)
        return batch


def available_cpus() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_dataset(config: DataConfig, split: Split, *, seed: int) -> Dataset:
    """The rows of `split`; tokenizes and packs what the cache does not hold. `seed` counts unless the config has one.
    Raises InputError for sources that cannot be read or are too short to be split."""
    if split == "eval" and not config.holds_out:
        raise InputError("data: held_out_fraction is 0 for all sources: nothing is held out to evaluate on")
    tokenizer = load_tokenizer(config.tokenizer)
    chosen = seed if config.seed is None else config.seed
    nothing_of = 1.0 if split == "train" else 0.0
    names = [name for name in config.sources if config.held_out_of(name) != nothing_of]
    shuffled = split == "train" and config.shuffle
    seeds = {name: derive(chosen, "source", name) if shuffled else None for name in names}
    sources = [_open_source(name, config, split, tokenizer, seeds[name]) for name in names]
    if split == "train" and names:
        mixture = Weighted({name: config.sources[name].weight for name in names})
    else:
        mixture = Sequential([source.plan.num_rows for source in sources])
    fingerprint = _fingerprint(config, split, chosen, sources, tokenizer)
    return Dataset(sources, mixture, config, tokenizer, fingerprint)


def _open_source(name: str, config: DataConfig, split: Split, tokenizer: Tokenizer, seed: int | None) -> SourceRows:
    source, fraction = config.sources[name], config.held_out_of(name)
    if isinstance(source, PreferencesSource):
        return _open_pairs(name, source, config, split, tokenizer, seed)
    in_runs, tiles = isinstance(source, TrajectoriesSource | PictureSource), None
    if isinstance(source, PictureSource):
        store, pictures = tokenize_pictures(name, config, tokenizer)
        tiles = SourceTiles(store, pictures, config.tiles)
    elif isinstance(source, MadeSource):
        store = tokenize_made(name, config, tokenizer)
    else:
        store = (tokenize_trajectories if in_runs else tokenize_text)(name, config, tokenizer)
    if in_runs and 0 < fraction < 1 and store["offsets"].size == 2:
        what = "sample" if tiles else "trajectory"
        raise InputError(f"data.sources.{name}: holds one {what}, which is not split; set held_out_fraction: 0, or 1")
    train, held_out = split_documents(store["offsets"], fraction, name)
    documents = train if split == "train" else held_out
    part = _Part(store.digest, split, fraction, seed)
    if isinstance(source, TrajectoriesSource):
        plan = _window_plan(part, store, documents, config, source.trajectories.overlap)
        decisions = _balance(store, train, source.trajectories.balance_decisions)
        weighing = OfRuns(config.kind_weights, source.trajectories.outcomes, decisions)
    elif isinstance(source, MadeSource):
        plan = _window_plan(part, store, documents, config, overlap=0)
        weighing = OfRuns(config.kind_weights, OutcomeWeights(), _balance(store, train, None))
    elif isinstance(source, PictureSource):
        plan = _picture_plan(part, store, documents, config, source.overlap)
        weighing = OfRuns(config.kind_weights, OutcomeWeights(), _balance(store, train, None))
    else:
        plan = _plan(part, documents, config)
        weighing = OfTexts(config.kind_weights) if config.has_kinds else None
    if plan.num_rows > MAX_ROWS:
        raise InputError(f"data.sources.{name}: {plan.num_rows} rows; a source may have {MAX_ROWS}: split it in two")
    first = int(np.searchsorted(store["offsets"], documents.begin[0], "right")) - 1
    numbers = range(first, first + documents.begin.size)
    return SourceRows(name, store, plan, numbers, config.sequence_length, seed, weighing, config.cell, tiles)


def _open_pairs(
    name: str, source: PreferencesSource, config: DataConfig, split: Split, tokenizer: Tokenizer, seed: int | None
) -> SourceRows:
    store, fraction, options = tokenize_pairs(name, config, tokenizer), config.held_out_of(name), source.preferences
    train, held_out = pairs.split_pairs(store, fraction, name)
    own = train if split == "train" else held_out
    if seed is not None:
        own = own[shuffled(own.size, derive(seed, "documents"))]
    identity = ["pairs", pairs.LAYOUT, *_Part(store.digest, split, fraction, seed), config.sequence_length]

    def arrange() -> tuple[dict[str, np.ndarray], dict]:
        arrays, counts = pairs.pair_arrays(store, own, config.sequence_length, name, config.cell)
        return arrays, {"counts": counts}

    plan = PairPlan(_arranged_once(config, [*identity, *_cells(config)], arrange))
    weighing = OfPairs(options.kind_weights, options.prefix == "cancel")
    return SourceRows(name, store, plan, range(own.size), config.sequence_length, seed, weighing, config.cell)


def _balance(store: ArrayFolder, train: Documents, most: float | None) -> np.ndarray:
    """float32[4]: loss factors of decisions, by class, from the training trajectories, which come first."""
    if most is None:
        return np.ones(len(Decision) + 1, np.float32)
    return balance(store["decisions"].reshape(-1, len(Decision))[: train.begin.size].sum(axis=0), most)


class _Part(NamedTuple):
    """The identity of a selection of documents and their order."""

    store: str
    split: Split
    fraction: float
    seed: int | None


def _window_plan(part: _Part, store: ArrayFolder, documents: Documents, config: DataConfig, overlap: float) -> Windowed:
    T = config.sequence_length
    identity = ["windows", windows.LAYOUT, *part, T, overlap, *_cells(config)]

    def arrange() -> tuple[dict[str, np.ndarray], dict]:
        arrays, cuts = windows.window_arrays(
            packing.document_order(documents, part.seed), store, T, overlap, config.cell
        )
        return arrays, {"cuts": dataclasses.asdict(cuts)}

    return Windowed(_arranged_once(config, identity, arrange))


def _picture_plan(
    part: _Part, store: ArrayFolder, documents: Documents, config: DataConfig, overlap: float
) -> Windowed:
    T, even = config.sequence_length, config.tiles.per_row is None
    most = config.tiles.most_in_row(T)
    identity = ["pictures", windows.LAYOUT, two_budgets.LAYOUT, *part, T, overlap, most, even, *_cells(config)]

    def arrange() -> tuple[dict[str, np.ndarray], dict]:
        ordered = packing.document_order(documents, part.seed)
        arrays, cuts = windows.windows_in_two(ordered, store, T, overlap, blocks_of(store), most, even, config.cell)
        return arrays, {"cuts": dataclasses.asdict(cuts)}

    return Windowed(_arranged_once(config, identity, arrange))


def _plan(part: _Part, documents: Documents, config: DataConfig) -> Plan:
    T, concatenate = config.sequence_length, config.packing == "concatenate"
    # Concatenation cuts rows when they are read: its arrays serve every length.
    identity = [ORDER, *part, config.packing, *([None] if concatenate else [T, *_cells(config)])]

    def arrange() -> tuple[dict[str, np.ndarray], dict]:
        ordered = packing.document_order(documents, part.seed)
        if concatenate:
            return packing.concatenate_arrays(ordered), {}
        return packing.best_fit_arrays(ordered, T, config.cell), {}

    arrays = _arranged_once(config, identity, arrange)
    return packing.Concatenated(arrays, T, part.seed, config.cell) if concatenate else packing.BestFitted(arrays)


def _cells(config: DataConfig) -> list[int]:
    """What the cells of rows add to the identity of a plan."""
    return [] if config.cell is None else [config.cell]


def _arranged_once(
    config: DataConfig, identity: list, arrange: Callable[[], tuple[dict[str, np.ndarray], dict]]
) -> ArrayFolder:
    """The arrays and metadata that `arrange` returns, cached beside the tokens."""
    path = config.cached("packing", identity)

    def build(folder: pathlib.Path) -> None:
        arrays, meta = arrange()
        seal(folder, {name: write_array(folder, name, array) for name, array in arrays.items()}, meta)

    return build_once(path, build)


def split_documents(offsets: np.ndarray, fraction: float, name: str = "") -> tuple[Documents, Documents]:
    """(train, held out): the last `fraction` of the tokens is held out, cut at the nearest border between documents,
    or inside the document where there is only one. 1 and 0: all, nothing. Raises InputError for a source too short to
    have both."""
    begin, end = offsets[:-1], offsets[1:]
    total = int(offsets[-1])
    if fraction in (0, 1):
        every, none = Documents(begin, end), Documents(begin[:0], end[:0])
        return (every, none) if fraction == 0 else (none, every)
    wanted = total - fraction * total
    if begin.size == 1:
        cut = min(max(round(wanted), 2), total - 2)
        if cut < 2:
            raise InputError(f"data.sources.{name}: {total} tokens are too few to hold some out; set "
                             "data.held_out_fraction: 0")  # fmt: skip
        border = np.array([cut], offsets.dtype)
        return Documents(begin, border), Documents(border, end)
    borders = offsets[1:-1]
    first = 1 + int(np.abs(borders - wanted).argmin())
    share = 1 - int(offsets[first]) / total
    if not fraction / 2 <= share <= 2 * fraction:
        _log.warning("source %s: its documents are so long that %.3g of it are held out instead of %.3g", name, share,
                     fraction)  # fmt: skip
    return Documents(begin[:first], end[:first]), Documents(begin[first:], end[first:])


def _fingerprint(
    config: DataConfig, split: Split, seed: int, sources: Sequence[SourceRows], tokenizer: Tokenizer
) -> str:
    """Digest of everything that determines the tokens of row g of step s: contents, not file names."""
    decides = {
        "order": ORDER,
        "split": split,
        "seed": seed,
        "tokenizer": tokenizer.fingerprint,
        "sources": [[s.name, s.store.digest, str(config.sources[s.name].weight)] for s in sources],
        **config.model_dump(include={"batch_size", "sequence_length", "packing", "held_out_fraction", "shuffle"}),
    }
    if config.cell is not None:
        decides["cell"] = config.cell
    here = {source.name: config.sources[source.name] for source in sources}
    if own := {name: source.held_out_fraction for name, source in here.items() if source.held_out_fraction is not None}:
        decides["held_out"] = own
    if with_tiles := [source for source in sources if source.tiles is not None]:
        decides["pictures"] = {source.name: source.tiles.pictures.digest for source in with_tiles if source.tiles}
        decides["decoder"] = decoder_version()
        decides["tiles"] = config.tiles.model_dump(exclude={"budgets", "prefetch_bytes"})
        decides["windows"] = {
            name: source.overlap for name, source in here.items() if isinstance(source, PictureSource)
        }
    if config.has_kinds:
        options = {n: source.trajectories for n, source in here.items() if isinstance(source, TrajectoriesSource)}
        decides["overlap"] = {name: option.overlap for name, option in options.items()}
        decides["balance_decisions"] = {name: option.balance_decisions for name, option in options.items()}
        decides["outcomes"] = {name: option.outcomes.model_dump() for name, option in options.items()}
        # earlier versions had a weight of pictures, 0; existing runs have it in their fingerprints
        decides["kind_weights"] = config.kind_weights.model_dump() | {"image": 0.0}
    if config.has_preferences:
        pairs = {name: source.preferences for name, source in here.items() if isinstance(source, PreferencesSource)}
        decides["pairs"] = {name: [o.kind_weights.model_dump(), o.prefix] for name, o in pairs.items()}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
