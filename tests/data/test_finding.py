"""Which files of a folder are data: every other one is named with the reason."""

import bz2
import gzip
import json
import logging
import lzma
import os
import pathlib

import pytest

from data import commands
from data.cache.tokenize_text import tokenize_text
from data.config import DataConfig
from data.finding import FoundFiles, find_files, listed
from data.trajectories import read_trajectories
from data.trajectories.reading import Tally
from launch.cli import main
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from tests.data.test_compression import zstandard
from tests.helpers import trajectory_samples as samples

BYTES = load_tokenizer("bytes")
ENDINGS = (".txt", ".md", ".jsonl")


def make(folder: pathlib.Path, **files: bytes | str) -> pathlib.Path:
    """Writes files; `__` in a name is `/`, `_` is `.`."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def found(folder: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    files = find_files(folder, "x", ENDINGS, ENDINGS)
    return [path.relative_to(folder).as_posix() for path in files.files], files.left_out


def record(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def config(tmp_path, path, **source) -> DataConfig:
    one = {"path": str(path), "held_out_fraction": 0, **source}
    sizes = {"sequence_length": 8, "batch_size": 1}
    return DataConfig.model_validate({"sources": {"s": one}, "cache_dir": str(tmp_path / "cache"), **sizes})


def documents(tmp_path, path, **source) -> list[str]:
    store = tokenize_text("s", config(tmp_path, path, **source), BYTES)
    bounds = zip(store["offsets"][:-1], store["offsets"][1:], strict=True)
    return [BYTES.decode(store["tokens"][begin + 1 : end - 1]) for begin, end in bounds]


# ---- the cases -------------------------------------------------------------------------------------------------------


def test_compressed_shards_of_a_folder_are_documents_like_the_others(tmp_path):
    """cases/folder_compressed.sh, and the other compressions."""
    shards = {
        "part-0_jsonl": record("first"),
        "part-1_jsonl_gz": gzip.compress(record("second").encode()),
        "part-2_json_gz": gzip.compress(record("third").encode()),
        "part-3_jsonl_zst": zstandard(record("fourth").encode()),
        "part-4_txt_bz2": bz2.compress(b"fifth"),
        "part-5_ndjson_xz": lzma.compress(record("sixth").encode()),
    }
    folder = make(tmp_path / "corpus", **shards)
    assert documents(tmp_path, folder) == ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert documents(tmp_path, folder / "part-1.jsonl.gz", format="jsonl") == ["second"]
    assert documents(tmp_path, str(folder / "*.json*.gz")) == ["second", "third"]
    assert documents(tmp_path, folder, format="jsonl") == ["first", "second", "third", "fourth", "sixth"]


def test_a_dataset_card_is_no_document(tmp_path, capsys):
    """cases/folder_readme.sh."""
    card = "---\nlicense: mit\n---\n# Dataset card\n"
    folder = make(tmp_path / "corpus", README_md=card, data__a_jsonl=record("the only document of this corpus"))
    words = [f"data.sources={{a: {{path: {folder}, held_out_fraction: 0}}}}", f"data.cache_dir={tmp_path / 'cache'}"]
    sizes = ["data.sequence_length=8", "data.batch_size=1"]
    assert main(["data", "stats", "pretrain_tiny", *words, *sizes, "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["splits"]["train"]["documents"] == 1
    assert stats["left_out"] == {"a": {"README.md": "about the data"}}
    assert main(["data", "stats", "pretrain_tiny", *words, *sizes]) == 0
    assert "a: 1 files left out: README.md (about the data)" in capsys.readouterr().out


# ---- neighbors -------------------------------------------------------------------------------------------------------


def test_files_about_the_data_are_left_out_and_documents_of_such_names_are_not(tmp_path):
    names = ("LICENSE", "LICENSE_txt", "readme_md", "CITATION_cff", "deep__state_json")
    folder = make(tmp_path / "x", **dict.fromkeys(names, "-"), deep__README_md="# Ours\n", licenses_txt="a list")
    make(folder, deep__of__README_md="---\nlicense: mit\n---\n", readmes_md="about readmes")
    files, left_out = found(folder)
    assert files == ["deep/README.md", "licenses.txt", "readmes.md"]
    assert {name for name, why in left_out.items() if why == "about the data"} == {
        "LICENSE", "LICENSE.txt", "readme.md", "CITATION.cff", "deep/state.json", "deep/of/README.md"}  # fmt: skip


def test_a_card_that_is_named_is_read(tmp_path):
    folder = make(tmp_path / "x", README_md="a text", a_txt="another")
    assert documents(tmp_path, folder / "README.md") == ["a text"]
    assert documents(tmp_path, str(folder / "*.md")) == ["a text"]


def test_everything_that_is_left_out_has_a_reason(tmp_path):
    folder = make(tmp_path / "x", a_txt="a", b_pdf="b", c_txt_gz=gzip.compress(b"c"), d_parquet_gz=b"d", e_tar_gz=b"e")
    make(folder, f_gz=b"f", g_txt_7z=b"g", m_json="[]", noending=b"h", _hidden_txt=b"i", _git__config_txt=b"j")
    make(tmp_path, elsewhere__k_txt="k")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.txt").symlink_to(tmp_path / "nowhere")
    (folder / "l.txt").symlink_to(tmp_path / "elsewhere" / "k.txt")
    os.mkfifo(folder / "pipe.txt")
    files, left_out = found(folder)
    assert files == ["a.txt", "c.txt.gz", "l.txt"]  # links to files are how hubs store data sets
    assert left_out == {
        ".git/": "hidden",
        ".hidden.txt": "hidden",
        "b.pdf": "an ending that is not read",
        "d.parquet.gz": "compressed .parquet, which is not read",
        "dangling.txt": "a link that leads nowhere",
        "e.tar.gz": "compressed .tar, which is not read",
        "f.gz": "compressed file without another ending, which is not read",
        "g.txt.7z": "an ending that is not read",
        "m.json": "an ending that is not read; JSON lines end in .jsonl, or are named in `path`",
        "linked/": "a link to a folder; to read it, give its path too",
        "noending": "no ending",
        "pipe.txt": "not a regular file",
    }


def test_a_link_to_a_folder_can_be_given_itself(tmp_path):
    make(tmp_path, elsewhere__k_txt="k", x__a_txt="a")
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    assert documents(tmp_path, tmp_path / "x" / "linked") == ["k"]


def test_what_is_left_out_is_logged_once_and_short(tmp_path, caplog):
    folder = make(tmp_path / "x", a_txt="a", **{f"n{i}_pdf": b"" for i in range(20)})
    with caplog.at_level(logging.WARNING):
        config(tmp_path, folder).sources["s"].files("s")  # pyright: ignore[reportAttributeAccessIssue]
        documents(tmp_path, folder)
    (line,) = [r.message for r in caplog.records if "left out" in r.message]
    assert line.startswith(f"data.sources.s.path: {folder}: files read: 1; left out: n0.pdf (an ending that")
    assert line.endswith("and 12 more")
    assert listed({"a": "why", "b": "so"}) == "a (why), b (so)"


def test_names_of_files_cannot_control_a_terminal(tmp_path, caplog):
    FoundFiles(tmp_path, [], {"\x1b]0;x\x07.pdf": "no"}).say("here")
    assert "\x1b" not in caplog.text and "x1b" in caplog.text


def test_a_folder_without_data_says_what_it_has(tmp_path):
    folder = make(tmp_path / "x", README_md="x", b_pdf="b")
    with pytest.raises(InputError, match=r"no file that ends in .*; it has README.md \(about the data\), b.pdf \(an"):
        found(folder)


def test_folders_that_a_glob_matches_are_named(tmp_path, caplog):
    folder = make(tmp_path / "x", a_txt="a", deep__b_txt="b")
    assert documents(tmp_path, str(folder / "*")) == ["a"]
    assert f"{folder}/deep/ (not a file)" in caplog.text


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("a.parquet", {}, "a.parquet: compressed with gzip; Parquet is read uncompressed"),
        ("a.array_record", {}, "a.array_record: compressed with gzip; ArrayRecord is read uncompressed"),
        ("a.parquet.gz", {}, "compressed with gzip, and no format that is read so has the ending '.parquet'"),
        ("a.gz", {}, "compressed with gzip, .*set `format`"),
        ("a.parquet.gz", {"format": "parquet"}, "compressed with gzip; Parquet"),
    ],
)
def test_a_compressed_file_that_cannot_be_read_says_compressed(name, source, said, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match=said):
        documents(tmp_path, tmp_path / name, **source)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.jsonl.MAX_LINE", 1000)
    folder = make(tmp_path / "x", a_jsonl_gz=gzip.compress(record("a").encode() + record("b" * 2000).encode()))
    with pytest.raises(InputError, match=r"a.jsonl.gz: line 2: longer than 1,000 bytes"):
        documents(tmp_path, folder)


@pytest.mark.parametrize("ending", ["jsonl_gz", "json_gz", "json_zst", "traj_xz"])
def test_trajectories_are_read_compressed_too(ending, tmp_path):
    lines = f"{json.dumps(samples.openai())}\n" * (1 if ending.startswith("traj") else 2)
    pack = {"gz": gzip.compress, "zst": zstandard, "xz": lzma.compress}[ending.partition("_")[2]]
    folder = make(tmp_path / "runs", **{f"a_{ending}": pack(lines.encode())}, b_json=json.dumps(samples.openai()))
    make(folder, README_md="card", c_txt="no")
    tally = Tally()
    assert len(list(read_trajectories(folder, tally=tally))) == 1 + len(lines.splitlines())
    assert set(tally.left_out_files) == {"README.md", "c.txt"}


def test_metadata_of_a_hub_is_no_trajectory(tmp_path, capsys):
    folder = make(tmp_path / "runs", a_jsonl=json.dumps(samples.openai()) + "\n")
    for name in ("dataset_infos.json", "state.json"):
        (folder / name).write_text("{}")
    assert main(["data", "convert", str(folder), str(tmp_path / "out.jsonl"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["files"], counts["records"]) == (1, 1)
    assert counts["left_out_files"] == {"dataset_infos.json": "about the data", "state.json": "about the data"}


def test_stats_say_nothing_of_sources_without_files(tmp_path):
    data = DataConfig.model_validate({"sources": {"s": {"kind": "synthetic"}}, "cache_dir": str(tmp_path)})
    assert commands.stats(data, 0)["left_out"] == {}
