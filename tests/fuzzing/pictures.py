"""Samples with pictures as a target: edited files of every format and kind. What is accepted must render, with a tile
for each of its patches, and every other sample must be counted by its reason."""

import json
import pathlib

from hypothesis import strategies as st

from data.pictures.config import TilesConfig
from data.pictures.containers import as_json
from data.pictures.reading import SampleTally, read_samples
from data.pictures.rendering import RenderedSample, SampleLimits, SampleRenderer, Shown
from data.pictures.sample import REASONS, Sample, SampleProblem, as_problems
from data.sources import PicturesSource
from maverick_jax.images import open_image
from tests.fuzzing.harness import Target
from tests.fuzzing.mutations import damaged, json_files
from tests.fuzzing.texts import bytes_with_thoughts
from tests.helpers.picture_samples import TEN, picture

LIMITS = SampleLimits(TilesConfig(tile_size=28), 512, 64, "windows", 2)
SMALL = 1 << 16
"""Largest picture, in pixels, whose size is taken from itself."""


def pictures_target(scratch: pathlib.Path) -> Target:
    """Files of samples: JSON, JSON lines, Parquet and tar."""
    data, examples = picture(1, (20, 50)), []
    for name, write in TEN.items():
        folder = scratch / name
        folder.mkdir()
        path = folder / write(folder, data)
        content = path.read_bytes()
        edited = damaged(content)
        if path.suffix in (".json", ".jsonl"):
            edited = st.one_of(edited, json_files(json.loads(content)))
        examples.append(st.tuples(st.just(str(path)), edited))
    return Target("pictures", st.one_of(examples), lambda example: _read(*example), seconds=6, megabytes=1536)


def _read(name: str, content: bytes) -> bool:
    path = pathlib.Path(name)
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        options = PicturesSource(path=name, documents="last_text" if len(content) % 2 else "whole")
        tally = SampleTally("skip")
        found = list(read_samples([path], None, None, options, tally))
        assert tally.records == len(found) + tally.repeated + tally.refused.total()
        assert set(tally.refused) <= set(REASONS)
        taken = [_rendered(sample) for _, sample in found]
    finally:
        path.write_bytes(before)
    return any(taken)


def _rendered(sample: Sample) -> bool:
    tokenizer = bytes_with_thoughts()
    try:
        shown = [Shown(i, _size(p.read())) for i, p in enumerate(sample.pictures)]
        made = SampleRenderer(tokenizer, "meta_json", LIMITS).render(json.loads(as_json(sample.body)), shown)
    except SampleProblem as problem:
        return REASONS[problem.reason] == str(problem)  # never: but both must be there and be text
    _check(made, tokenizer.controls["<|patch|>"])
    return True


def _size(data: bytes) -> tuple[int, int]:
    with as_problems("picture"):
        image = open_image(data)
    return (image.height, image.width) if image.height * image.width < SMALL else (40, 40)


def _check(made: RenderedSample, patch: int) -> None:
    """Tokens of pictures are those of the blocks and no others."""
    inside = sum(int((made.ids[block.begin : block.end] == patch).sum()) for block in made.blocks)
    assert inside == sum(block.tiles for block in made.blocks) == int((made.ids == patch).sum())
    assert made.longer or made.ids.size <= LIMITS.length
