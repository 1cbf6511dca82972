"""Tiles in rows and batches, and the tile budgets of steps."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from data.config import DataConfig
from data.rows.dataset import Dataset, open_dataset
from data.rows.mixture import Weighted
from data.rows.tiles import FIRST_STEPS, TileBudgets, chosen_budgets
from data.trajectories.kinds import TokenKind
from maverick_jax.images import cut_tiles, open_image
from maverick_jax.text import load_tokenizer
from tests.helpers.picture_samples import data_config, picture, write_llava

PATCH = load_tokenizer("bytes").controls["<|patch|>"]


def random_sizes(count: int, seed: int = 0) -> list[list[tuple[int, int]]]:
    """Sizes of 0 to 4 pictures per sample, of 1 to 17 tiles of 28 pixels."""
    random = np.random.RandomState(seed)
    return [[tuple(random.randint(10, 113, 2).tolist()) for _ in range(random.randint(0, 5))] for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_llava(folder, random_sizes(60))
    (folder / "notes.txt").write_text("Some notes. " * 300)
    return folder


def config_of(folder: pathlib.Path, **changes) -> DataConfig:
    return data_config(folder, {"path": str(folder / "samples.json")}, **changes)


def batch_of(data: Dataset, rows, step: int, size: int = 4) -> dict[str, np.ndarray]:
    with data.batches(rows, size, step, 1) as batches:
        return next(batches)


def test_the_kth_patch_of_a_row_belongs_to_the_kth_feature_of_its_tiles(folder):
    """Found again from the tokens alone: each run of patches between other tokens is one tile of one picture."""
    data = open_dataset(config_of(folder, sequence_length=512), "train", seed=0)
    store, pictures = data.sources[0].store, data.sources[0].tiles.pictures
    seen = 0
    for step in range(3):
        batch = batch_of(data, range(4), step)
        assert batch["tiles"].shape == (4, data.tile_budgets(4)(step), 3, 28, 28)
        for g in range(4):
            pieces = data.sources[0].pieces(data.locate(4 * step + g)[1])
            spans = list(zip(pieces.begin.tolist(), pieces.length.tolist(), strict=True))
            expected = []
            for begin, length in spans:
                for p in range(store["picture_begin"].size):
                    if begin <= store["picture_begin"][p] < begin + length:
                        assert store["picture_end"][p] <= begin + length
                        number = store["picture_number"][p]
                        low, high = pictures["offsets"][number : number + 2]
                        image = open_image(pictures["blob"][low:high].tobytes())
                        expected.append(cut_tiles(image, data.config.tiles.images)[0])
            expected = np.concatenate(expected) if expected else np.zeros((0, 3, 28, 28), np.uint8)
            assert (batch["tokens"][g] == PATCH).sum() == len(expected)
            np.testing.assert_array_equal(batch["tiles"][g, : len(expected)], expected)
            assert not batch["tiles"][g, len(expected) :].any()
            seen += len(expected)
    assert seen > 100


def test_each_sample_in_a_row_is_as_it_is_alone(folder):
    """Packing changes neither tokens nor labels, weights, positions or tiles."""
    data = open_dataset(config_of(folder, sequence_length=512), "train", seed=0)
    source = data.sources[0]
    offsets = source.store["offsets"]
    samples, tokens, tiles = 0, source.store["tokens"], 0
    for at in range(source.plan.num_rows):
        row, pieces = source.row(at), source.pieces(at)
        tiles += source.num_tiles(at)
        for segment, (begin, length) in enumerate(zip(pieces.begin, pieces.length, strict=True), start=1):
            here = row["segment_ids"] == segment
            assert begin in offsets and begin + length in offsets
            np.testing.assert_array_equal(row["tokens"][here], tokens[begin : begin + length])
            np.testing.assert_array_equal(row["labels"][here][:-1], tokens[begin + 1 : begin + length])
            np.testing.assert_array_equal(row["positions"][here], np.arange(length))
            kinds = source.store["kinds"][begin + 1 : begin + length]
            np.testing.assert_array_equal(row["kinds"][here][:-1], kinds)
            assert not row["loss_weights"][here][:-1][kinds == TokenKind.IMAGE].any()
            samples += 1
    assert samples == 60 and tiles == source.store["picture_tiles"].sum()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_bytes_of_a_batch_do_not_depend_on_the_number_of_processes(processes, folder):
    data = open_dataset(config_of(folder, shuffle=True), "train", seed=3)
    for step in (0, 7):
        whole = {name: np.stack([data.row(4 * step + g)[name] for g in range(4)]) for name in data.row(0)}
        parts = [batch_of(data, list(range(p, 4, processes)), step) for p in range(processes)]
        for name in parts[0]:
            joined = np.empty((4, *parts[0][name].shape[1:]), parts[0][name].dtype)
            for p, part in enumerate(parts):
                joined[p::processes] = part[name]
            expected = batch_of(data, range(4), step)[name]
            np.testing.assert_array_equal(joined, expected)
            if name in whole:
                np.testing.assert_array_equal(joined, whole[name])
        assert "tiles" in parts[0]


def test_workers_and_threads_do_not_change_tiles(folder):
    config = config_of(folder, shuffle=True)
    expected = batch_of(open_dataset(config, "train", seed=3), range(4), 1)
    for changes in ({"workers": 1}, {"prefetch": 7}, {"tiles": config.tiles.model_copy(update={"prefetch_bytes": 1})}):
        data = open_dataset(config.model_copy(update=changes), "train", seed=3)
        for name, field in batch_of(data, range(4), 1).items():
            np.testing.assert_array_equal(field, expected[name])


def test_rows_of_other_sources_have_no_tiles(folder):
    sources = {"shown": {"kind": "pictures", "path": str(folder / "samples.json"), "weight": 1.0},
               "notes": {"path": str(folder / "notes.txt"), "weight": 3.0}}  # fmt: skip
    data = open_dataset(config_of(folder, sources=sources), "train", seed=0)
    batch = batch_of(data, range(8), 0, 8)
    of_text = [data.locate(g)[0].name == "notes" for g in range(8)]
    assert sum(of_text) == 6 and not batch["tiles"][of_text].any()
    assert (batch["kinds"][of_text][batch["segment_ids"][of_text] > 0] == TokenKind.DOCUMENT).mean() > 0.9
    only = data.only("notes")
    assert only.tile_budgets(8).values == (0,) and "tiles" not in batch_of(only, range(8), 0, 8)
    only = data.only("shown")
    assert "tiles" in batch_of(only, range(8), 0, 8)
    beyond = batch_of(only, range(8), only.sources[0].plan.num_rows, 8)
    assert not beyond["tokens"].any() and not any(field.any() for name, field in beyond.items() if name == "tiles")


def test_the_fingerprint_depends_on_pictures_and_tiles(tmp_path):
    write_llava(tmp_path, [[(20, 20)], [(30, 60)]])
    base = config_of(tmp_path)
    one = open_dataset(base, "train", seed=0).fingerprint
    assert open_dataset(base, "train", seed=0).fingerprint == one
    tiles = base.tiles.model_copy(update={"max_tiles": 2})
    assert open_dataset(base.model_copy(update={"tiles": tiles}), "train", seed=0).fingerprint != one
    tiles = base.tiles.model_copy(update={"prefetch_bytes": 9, "budgets": 2})
    assert open_dataset(base.model_copy(update={"tiles": tiles}), "train", seed=0).fingerprint == one
    (tmp_path / "0_0.png").write_bytes(picture(99, (20, 20)))
    (tmp_path / "samples.json").touch()
    assert open_dataset(base, "train", seed=0).fingerprint != one


def test_long_samples_get_fewer_tiles_then_windows_and_no_picture_is_cut(tmp_path):
    sizes = [[(112, 112)] * 2, [(112, 112)] * 6, [(112, 112)] * 30, []]
    write_llava(tmp_path, sizes, answer="It is {}." + " word" * 20)
    data = open_dataset(config_of(tmp_path, sequence_length=256), "train", seed=0)
    source = data.sources[0]
    counts = source.store.meta["samples"]
    assert (counts["samples"], counts["fewer_tiles"], counts["longer_than_a_row"]) == (4, 1, 1)
    most = np.unique(source.store["picture_max_tiles"][2:8])
    assert most.size == 1 and 4 <= most[0] < 16 and (source.store["picture_max_tiles"][8:] == 16).all()
    labels, shown = [], 0
    for at in range(source.plan.num_rows):
        row, pieces = source.row(at), source.pieces(at)
        shown += len(source.tiles.shown(pieces))
        assert (row["tokens"] == PATCH).sum() == source.num_tiles(at) <= data.config.tiles.most_in_row(256)
        labels += row["labels"][row["kinds"] != 255].tolist()
    assert shown >= 38
    first = source.store["offsets"][:-1]
    assert sorted(labels) == sorted(np.delete(source.store["tokens"], first).tolist())


# ---- budgets ---------------------------------------------------------------------------------------------------------


def random_rows(seed: int) -> TileBudgets:
    """The budgets of a mixture of three sources, of which one has no pictures, with random numbers of tiles per row."""
    random = np.random.RandomState(seed)
    tiles = [random.randint(30, 57, 997), random.binomial(56, random.uniform(0.1, 0.9), 500), np.zeros(300, np.int64)]
    mixture = Weighted({"a": 2.0, "b": 1.0, "c": float(random.randint(1, 20))})

    def tiles_of(row: int) -> int:
        source, at = mixture.locate(row)
        return int(tiles[source][(at * 7919) % tiles[source].size])

    return TileBudgets(tiles_of, int(random.randint(1, 9)), 56, int(random.randint(1, 7)))


@pytest.mark.parametrize("seed", range(12))
def test_a_thousand_steps_have_few_budgets_and_no_new_one_after_the_first(seed):
    budgets = random_rows(seed)
    found = [budgets(step) for step in range(1000)]
    assert all(budget >= budgets.need(step) for step, budget in enumerate(found))
    assert set(found) == set(found[:FIRST_STEPS]) == set(budgets.values) and len(budgets.values) <= 6


def test_budgets_are_chosen_where_they_save_most():
    assert chosen_budgets([10] * 40 + [50] * 10, 56, 4) == (10, 56)
    assert chosen_budgets([55, 56] * 25, 56, 4) == (56,)
    assert chosen_budgets([0] * 25 + [56] * 25, 56, 4) == (0, 56)
    assert chosen_budgets([0] * 50, 0, 4) == (0,)
    assert chosen_budgets([0] * 50, 56, 4) == (56,)
    assert chosen_budgets([0, 10, 20, 30, 40, 50], 50, 3) == (0, 20, 50)
    assert chosen_budgets([0, 10], 50, 1) == (50,)


def test_budgets_travel_to_other_processes(folder):
    data = open_dataset(config_of(folder), "train", seed=0)
    budgets = data.tile_budgets(4)
    copy = pickle.loads(pickle.dumps(budgets))  # noqa: S301  (our own bytes, as workers get them)
    assert copy.values == budgets.values and [copy(step) for step in range(9)] == [budgets(step) for step in range(9)]


def test_pictures_are_stored_once_by_content(tmp_path):
    write_llava(tmp_path, [[(20, 20)], [(30, 60)]])
    (tmp_path / "1_0.png").write_bytes((tmp_path / "0_0.png").read_bytes())
    records = json.loads((tmp_path / "samples.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps(records * 3))
    tiles = open_dataset(config_of(tmp_path), "train", seed=0).sources[0].tiles
    assert tiles.pictures["offsets"].size == 2 and tiles.pictures["shown"].tolist() == [0] * 6
    assert tiles.encoded(0) == (tmp_path / "0_0.png").read_bytes()


def test_rows_with_cells_have_their_own_tiles(folder):
    """Tiles and patches agree, and a segment lies in one cell or begins one."""
    data = open_dataset(config_of(folder, sequence_length=512, cell=128), "train", seed=0)
    for at in range(data.sources[0].plan.num_rows):
        row, tiles = data.sources[0].row(at), data.sources[0].num_tiles(at)
        assert (row["tokens"] == PATCH).sum() == tiles
        for segment in range(1, row["segment_ids"].max() + 1):
            places = np.flatnonzero(row["segment_ids"] == segment)
            assert places[0] % 128 == 0 or places[0] // 128 == places[-1] // 128
