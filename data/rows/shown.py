"""What rows show: descriptions of pictures and their tiles for people."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.rows.packing import places_of
from data.rows.source_rows import SourceRows
from data.rows.tiles import SourceTiles, TileBudgets
from maverick_jax.images import choose_grid, open_image

THUMBNAIL = 160
"""Longest side of a thumbnail, in pixels."""
STEPS = 1_000
"""Most steps of an epoch whose tile budgets are counted."""


def pictures_of_row(source: SourceRows, index: int, *, thumbnails: bool) -> list[dict[str, Any]]:
    """The pictures of a row: place of the first token, number of tokens, size in pixels, grid, number of tiles, and the
    beginning of the SHA-256. `thumbnails`: also small copies, as data URIs."""
    return [] if source.tiles is None else list(_pictures(source.tiles, source, index, thumbnails))


def _pictures(tiles: SourceTiles, source: SourceRows, index: int, thumbnails: bool) -> Iterator[dict[str, Any]]:
    pieces = source.pieces(index)
    place = places_of(pieces, source.cell).place
    for picture in tiles.shown(pieces):
        height, width = tiles.size(picture.number)
        down, across = choose_grid((height, width), tiles.config.cut(picture.max_tiles))
        digest = tiles.pictures["digests"][32 * picture.number :][:8].tobytes().hex()
        found = {
            "place": int(place[picture.first]),
            "tokens": picture.tokens,
            "width": width,
            "height": height,
            "down": down,
            "across": across,
            "tiles": picture.tiles,
            "sha256": digest,
        }
        yield found | ({"thumbnail": thumbnail(tiles.encoded(picture.number))} if thumbnails else {})


def thumbnail(data: bytes) -> str:
    """A small PNG of an encoded picture, as a data URI."""
    with open_image(data) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def in_words(picture: dict[str, Any]) -> str:
    """A picture in place of its tokens."""
    grid = f"{picture['down']} x {picture['across']} tiles and overview" if picture["tiles"] > 1 else "1 tile"
    return f"[picture of {picture['width']} x {picture['height']} pixels: {grid}, {picture['tokens']} tokens]"


def picture_counts(source: SourceRows) -> dict[str, Any] | None:
    """Of the rows of an epoch: pictures shown, different pictures and their bytes, tiles, the largest number of tiles
    of a row, and the fraction of that number that rows have in the mean; None: the source has no pictures."""
    if source.tiles is None:
        return None
    rows = range(source.plan.num_rows)
    tiles = np.array([source.num_tiles(row) for row in rows], np.int64)
    numbers = [p.number for row in rows for p in source.tiles.shown(source.pieces(row))]
    different = np.unique(np.array(numbers, np.int64))
    sizes = np.diff(source.tiles.pictures["offsets"])[different]
    most = max(source.most_tiles, 1)
    counts = {"shown": len(numbers), "different": int(different.size), "bytes": int(sizes.sum())}
    return counts | {
        "tiles": int(tiles.sum()),
        "most_in_row": source.most_tiles,
        "fill": float(tiles.mean() / most),
    }


def budget_counts(budgets: TileBudgets, num_tiles, batch_size: int, num_rows: int) -> dict[str, Any]:
    """The tile budgets of the steps of an epoch, at most STEPS of them: the different ones, their number of steps, and
    the median over steps of the fraction of tiles that are padding. `num_tiles`: of a stream row."""
    steps = range(max(1, min(num_rows // batch_size, STEPS)))
    of_steps = np.array([budgets(step) for step in steps], np.int64)
    used = [sum(num_tiles(step * batch_size + row) for row in range(batch_size)) for step in steps]
    room = of_steps * batch_size
    padding = np.where(room > 0, 1 - np.array(used) / np.maximum(room, 1), 0)
    counts = {str(value): int((of_steps == value).sum()) for value in budgets.values}
    return {"steps": counts, "median_padding": float(np.median(padding))}
