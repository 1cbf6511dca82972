"""Renders and tokenizes the samples of a source with pictures into the cache, once for each length of rows."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from data.array_folder import ArrayFolder, build_once, seal
from data.cache.columns import RunColumns
from data.cache.progress import TokenizationProgress
from data.cache.store_pictures import PROBLEMS_KEPT, store_pictures
from data.config import DataConfig
from data.pictures.reading import SampleTally
from data.pictures.rendering import RenderedSample, SampleLimits, SampleRenderer, Shown
from data.pictures.sample import SampleProblem, Where
from data.sources.pictures import PictureSource
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import dialect_of

LAYOUT = 1
"""Version of the cached arrays. It changes whenever the same samples give other arrays."""
PICTURE_ARRAYS = {
    "picture_begin": np.dtype("<i8"),
    "picture_end": np.dtype("<i8"),
    "picture_number": np.dtype("<i8"),
    "picture_max_tiles": np.dtype("<i4"),
    "picture_tiles": np.dtype("<i4"),
}

_log = logging.getLogger(__name__)


def tokenize_pictures(name: str, config: DataConfig, tokenizer: Tokenizer) -> tuple[ArrayFolder, ArrayFolder]:
    """The tokenized source `name`, and its pictures as `store_pictures` keeps them.

    The arrays are those of `tokenize_trajectories`, and per shown picture, in order: its tokens [`picture_begin`,
    `picture_end`), its number in the store, the `max_tiles` that it is cut with, and its number of tiles. Metadata:
    `samples`, the counts of reading and fitting. Raises InputError for samples that cannot be used, unless these are
    skipped."""
    source = config.sources[name]
    assert isinstance(source, PictureSource)
    pictures = store_pictures(name, config)
    dialect = dialect_of(source.dialect, tokenizer).name
    length = config.sequence_length
    limits = SampleLimits(config.tiles, length, config.tiles.most_in_row(length), source.too_long, source.fewest_tiles)
    settings = [dialect, source.malformed, *limits.identity()]
    identity = ["samples", LAYOUT, tokenizer.fingerprint, pictures.digest, settings]
    path = config.cached("tokens", identity)

    def build(folder: pathlib.Path) -> None:
        _log.info("tokenizing source %s into %s", name, path)
        renderer = SampleRenderer(tokenizer, dialect, limits)
        fitting = Fitting(SampleTally(source.malformed))
        with _Columns(folder, tokenizer, PICTURE_ARRAYS) as columns, TokenizationProgress(name) as progress:
            for sample in fitting.samples(name, pictures, renderer):
                columns.add_sample(sample)
                progress.update(columns.tokens, columns.trajectories)
        if not columns.trajectories:
            problems = fitting.tally.problems
            first = f"; the first: {problems[0]}" if problems else ""
            raise InputError(f"data.sources.{name}: no sample fits{first}")
        meta = {"empty_documents": 0, "dialect": dialect, "samples": fitting.counts(pictures)}
        seal(folder, columns.dtypes, meta)

    return build_once(path, build), pictures


@dataclasses.dataclass
class Fitting:
    """Counts of what was done so that samples fit into rows."""

    tally: SampleTally
    fewer_tiles: int = 0
    """Samples whose pictures got fewer tiles."""
    longer: int = 0
    """Samples that are cut into windows."""

    def samples(self, name: str, pictures: ArrayFolder, renderer: SampleRenderer) -> Iterator[RenderedSample]:
        """The rendered samples of a store, in order. Raises InputError where a sample cannot be rendered or does not
        fit, and such samples are not skipped."""
        for number in range(pictures["body_offsets"].size - 1):
            body, shown = stored_sample(pictures, number)
            try:
                sample = renderer.render(body, shown)
            except SampleProblem as problem:
                self.tally.refuse(Where(f"data.sources.{name}", number), problem)
                continue
            self.tally.samples += 1
            self.fewer_tiles += sample.fewer_tiles
            self.longer += sample.longer
            yield sample

    def counts(self, pictures: ArrayFolder) -> dict:
        """The counts of reading, with the samples that do not fit among the refused."""
        read, here = pictures.meta["samples"], self.tally.as_dict()
        return {
            **read,
            "samples": here["samples"],
            "refused": {**read["refused"], **here["refused"]},
            "problems": [*read["problems"], *here["problems"]][:PROBLEMS_KEPT],
            "fewer_tiles": self.fewer_tiles,
            "longer_than_a_row": self.longer,
        }


def stored_sample(pictures: ArrayFolder, number: int) -> tuple[dict, list[Shown]]:
    """The body of a stored sample, and its pictures."""
    begin, end = pictures["body_offsets"][number : number + 2]
    body = json.loads(pictures["bodies"][begin:end].tobytes())
    begin, end = pictures["shown_offsets"][number : number + 2]
    numbers = pictures["shown"][begin:end].tolist()
    return body, [Shown(p, (int(pictures["height"][p]), int(pictures["width"][p]))) for p in numbers]


class _Columns(RunColumns):
    """Writes the arrays of samples."""

    def add_sample(self, sample: RenderedSample) -> None:
        begin = self.tokens
        if sample.trajectory is None:
            self.add_document(sample.ids, sample.kinds, sample.turns)
        else:
            assert sample.rendered is not None
            self.add(sample.trajectory, sample.rendered)
        for block in sample.blocks:
            self.write(
                picture_begin=[begin + block.begin],
                picture_end=[begin + block.end],
                picture_number=[block.picture.number],
                picture_max_tiles=[block.max_tiles],
                picture_tiles=[block.tiles],
            )
