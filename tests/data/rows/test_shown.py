"""What `data inspect` and `data stats` say about pictures."""

import base64
import io
import json

import pytest
from PIL import Image
from rich.console import Console

from data import commands
from data.rows.dataset import open_dataset
from data.rows.shown import THUMBNAIL, in_words, pictures_of_row
from tests.helpers.picture_samples import data_config, picture, write_llava

SIZES = [[(20, 20)], [(40, 60), (400, 100)], []]


@pytest.fixture
def config(tmp_path):
    return data_config(tmp_path, {"path": str(write_llava(tmp_path, SIZES))})


@pytest.mark.parametrize("cell", [None, 128])
def test_pictures_of_a_row_stand_where_their_tokens_are(cell, config):
    data = open_dataset(config.model_copy(update={"cell": cell}), "train", seed=0)
    start = data.tokenizer.controls["<|image_start|>"]
    found = {}
    for at in range(data.sources[0].plan.num_rows):
        row, pictures = data.row(at)["tokens"], pictures_of_row(data.sources[0], at, thumbnails=False)
        assert [p["place"] for p in pictures] == [i for i, token in enumerate(row) if token == start]
        found |= {(p["height"], p["width"]): (p["down"], p["across"], p["tiles"], p["tokens"]) for p in pictures}
    assert found == {(20, 20): (1, 1, 1, 4), (40, 60): (2, 3, 7, 16), (400, 100): (8, 2, 17, 36)}


def test_inspect_shows_pictures_in_words_and_as_thumbnails(config):
    found = commands.inspect(config, 0, first=0, count=1, thumbnails=True)
    (row,) = found["rows"]
    shown = [run for run in row["runs"] if "picture" in run]
    assert [run["picture"] for run in shown] == [0, 1, 2] and all(run["kind"] == "image" for run in shown)
    assert {run["text"] for run in shown} == {in_words(p) for p in row["pictures"]}
    assert "[picture of 60 x 40 pixels: 2 x 3 tiles and overview, 16 tokens]" in {run["text"] for run in shown}
    for p in row["pictures"]:
        small = Image.open(io.BytesIO(base64.b64decode(p["thumbnail"].partition(",")[2])))
        assert max(small.size) == min(THUMBNAIL, max(p["width"], p["height"]))
    console = Console(file=io.StringIO(), width=120)
    commands.show(found, console)
    said = " ".join(console.file.getvalue().split())
    assert "[picture of 20 x 20 pixels: 1 tile, 4 tokens]" in said and "<|patch|>" not in said
    json.dumps(found)


def test_stats_count_pictures_tiles_bytes_and_budgets(config, tmp_path):
    (tmp_path / "1_0.png").write_bytes((tmp_path / "0_0.png").read_bytes())
    found = commands.stats(config, 0)["splits"]["train"]
    counts = found["sources"]["shown"]["pictures"]
    assert (counts["shown"], counts["different"], counts["tiles"]) == (3, 2, 1 + 1 + 17)
    assert counts["bytes"] == len(picture(0, (20, 20))) + len(picture(1, (400, 100)))
    assert counts["most_in_row"] == 19 and counts["fill"] == 1
    budgets = found["tile_budgets"]
    assert budgets["steps"] == {"19": 1} and budgets["median_padding"] == 0
    console = Console(file=io.StringIO(), width=200)
    commands.show(commands.stats(config, 0), console)
    said = console.file.getvalue()
    assert "pictures: 3 shown, 2 different" in said and "tile budgets of train: 19 in 1 steps" in said


def test_stats_say_what_was_refused(tmp_path):
    path = write_llava(tmp_path, SIZES)
    (tmp_path / "0_0.png").unlink()
    (tmp_path / "1_0.png").write_bytes(b"no picture")
    config = data_config(tmp_path, {"path": str(path), "malformed": "skip"})
    read = commands.stats(config, 0)["splits"]["train"]["sources"]["shown"]["read"]
    assert read["refused"] == {"missing": 1, "picture": 1} and read["samples"] == 1
    console = Console(file=io.StringIO(), width=300)
    commands.show(commands.stats(config, 0), console)
    assert "samples refused: missing 1, picture 1" in console.file.getvalue()
    assert "record 0: image[0]: '0_0.png': no such file" in console.file.getvalue()
