"""Containers of records with pictures."""

import json
import pathlib
import tarfile
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from data.pictures.containers import index_archive, read_entries
from data.pictures.shelf import Shelf
from data.rows.dataset import open_dataset
from tests.helpers.picture_samples import data_config, picture, write_tar

DATA = picture(1, (30, 30))
SAID = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "Noise."}]


def tiles_of(folder: pathlib.Path, name: str) -> bytes:
    data = open_dataset(data_config(folder, {"path": str(folder / name)}), "train", seed=0)
    with data.batches([0], 4, 0, 1) as batches:
        return next(batches)["tiles"].tobytes()


@pytest.mark.parametrize("order", [("bytes", "path"), ("path", "bytes")])
@pytest.mark.parametrize("listed", [False, True])
def test_structs_of_tables_are_read_by_the_names_of_their_fields(order, listed, tmp_path):
    kinds = {"bytes": pyarrow.binary(), "path": pyarrow.string()}
    kind = pyarrow.struct([(name, kinds[name]) for name in order])
    value = {"bytes": DATA, "path": "elsewhere/shown.png"}
    column = pyarrow.array([[value]], pyarrow.list_(kind)) if listed else pyarrow.array([value], kind)
    table = pyarrow.table({"conversations": [SAID], "image": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "shown.png").write_bytes(DATA)
    (tmp_path / "b.jsonl").write_text(json.dumps({"image": "shown.png", "conversations": SAID}))
    assert tiles_of(tmp_path, "a.parquet") == tiles_of(tmp_path, "b.jsonl")


def test_a_struct_without_bytes_names_a_file(tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    column = pyarrow.array([{"bytes": None, "path": "shown.png"}], kind)
    pyarrow.parquet.write_table(pyarrow.table({"conversations": [SAID], "image": column}), tmp_path / "a.parquet")
    (tmp_path / "shown.png").write_bytes(DATA)
    assert tiles_of(tmp_path, "a.parquet")


def test_a_large_group_of_rows_is_read_in_pieces(tmp_path):
    """One group of 64 MiB, of pages with four rows each, is never in memory as a whole."""
    noise = [picture(i, (16, 16)) + bytes(1 << 20) for i in range(64)]
    table = pyarrow.table({"query": ["What?"] * 64, "label": ["Noise."] * 64, "image": noise})
    options = {"row_group_size": 64, "write_batch_size": 4, "compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", **options)
    del table, noise
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    most = 0
    for entry in read_entries(tmp_path / "a.parquet"):
        assert entry.load()["query"] == "What?"
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most + tracemalloc.get_traced_memory()[1] < 56 << 20
    tracemalloc.stop()


def test_an_archive_is_indexed_without_reading_its_members(tmp_path):
    write_tar(tmp_path / "a.tar", {"x/0.seg.png": DATA, "x/0.json": b"{}", "x/1.txt": b"hi"})
    found = list(index_archive(tmp_path / "a.tar"))
    assert [(m.key, m.ending) for m in found] == [("x/0", "seg.png"), ("x/0", "json"), ("x/1", "txt")]
    content = (tmp_path / "a.tar").read_bytes()
    assert content[found[2].offset : found[2].offset + found[2].size] == b"hi"
    assert [len(entry.members) for entry in read_entries(tmp_path / "a.tar")] == [1, 0]


def test_folders_in_archives_are_skipped(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert list(index_archive(tmp_path / "a.tar")) == []


def test_a_record_of_an_archive_may_name_its_pictures_in_any_order(tmp_path):
    other = picture(2, (30, 60))
    two = [{"from": "human", "value": "<image><image>What?"}, SAID[1]]
    record = json.dumps({"images": ["0.b.png", "0.a.png"], "conversations": two}).encode()
    write_tar(tmp_path / "a.tar", {"0.a.png": DATA, "0.b.png": other, "0.json": record})
    (tmp_path / "b.jsonl").write_text(json.dumps({"images": ["o.png", "d.png"], "conversations": two}))
    (tmp_path / "d.png").write_bytes(DATA)
    (tmp_path / "o.png").write_bytes(other)
    assert tiles_of(tmp_path, "a.tar") == tiles_of(tmp_path, "b.jsonl")


@pytest.mark.parametrize("name", ["%68", "sha256", "sha1", "md5"])
def test_copies_of_addresses_are_found_by_name_or_digest(name, tmp_path):
    import hashlib
    import urllib.parse

    url = "http://example.org/a b.png?x=1"
    stem = urllib.parse.quote(url, safe="") if name == "%68" else hashlib.new(name, url.encode()).hexdigest()
    (tmp_path / f"{stem}.webp").write_bytes(DATA)
    assert Shelf(tmp_path).at_address(url, "images[0]").read() == DATA
