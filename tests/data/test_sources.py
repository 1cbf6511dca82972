"""Reading and tokenizing sources: every format, every defect with its file and line, and the cache."""

import hashlib
import json
import logging
import pathlib
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data import array_folder
from data.cache import tokenize_text as prepare
from data.cache.tokenize_text import tokenize_text
from data.config import DataConfig
from data.rows.dataset import open_dataset
from data.sources import SOURCES
from data.sources.synthetic import SyntheticSource
from data.trajectories.formats import FORMATS
from maverick_jax.errors import InputError
from maverick_jax.settings import strict_yaml, validation
from maverick_jax.settings.descriptions import descriptions
from maverick_jax.settings.section import Section
from maverick_jax.text import load_tokenizer

BYTES = load_tokenizer("bytes")
TEXTS = ["first", "zweites, größer", "<|end_of_text|> third\n"]


def _write(path: pathlib.Path, texts) -> pathlib.Path:
    """Writes `texts` in the format of the file's ending."""
    if path.suffix == ".txt":
        path.write_text("\n---\n".join(texts), "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"id": list(range(len(texts))), "text": texts}), path)
    else:
        _records(path, [json.dumps({"text": text}).encode() for text in texts])
    return path


def _records(path: pathlib.Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def _config(cache: pathlib.Path, **source) -> DataConfig:
    return DataConfig.model_validate({"sources": {"s": source}, "cache_dir": str(cache)})


def _read(tmp_path, **source) -> list[str]:
    """The documents as text, including control tokens."""
    store = tokenize_text("s", _config(tmp_path / "cache", **source), BYTES)
    bounds = zip(store["offsets"][:-1], store["offsets"][1:], strict=True)
    return [BYTES.decode(store["tokens"][begin:end], controls=True) for begin, end in bounds]


def _framed(texts) -> list[str]:
    return [f"<|begin_of_text|>{text}<|end_of_text|>" for text in texts]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet", ".array_record"])
def test_every_format_gives_the_same_documents(tmp_path, suffix):
    path = _write(tmp_path / f"a{suffix}", TEXTS)
    split_on = {"split_on": "\n---\n"} if suffix == ".txt" else {}
    assert _read(tmp_path, path=str(path), **split_on) == _framed(TEXTS)


def test_field_and_raw_records(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"body": "x"}\n\n{"body": "y", "text": 3}')
    assert _read(tmp_path, path=str(tmp_path / "a.jsonl"), field="body") == _framed(["x", "y"])
    _records(tmp_path / "b.array_record", [b"raw", '{"text": "ä"}'.encode()])
    raw = _read(tmp_path, path=str(tmp_path / "b.array_record"), format="array_record", field=None)
    assert raw == _framed(["raw", '{"text": "ä"}'])


def test_folders_globs_lists_and_the_order_of_files(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name, text in {"b.txt": "B", "a.md": "A", "deep/c.txt": "C", ".hidden/d.txt": "D", "e.bin": "E"}.items():
        (folder / name).write_text(text)
    assert _read(tmp_path, path=str(folder)) == _framed("ABC")
    assert _read(tmp_path, path=str(folder / "**" / "*.txt")) == _framed(["D", "B", "C"])
    listed = [str(folder / "deep" / "c.txt"), str(folder / "e.bin")]
    assert _read(tmp_path, path=listed, format="text") == _framed("CE")


def test_shipped_text(tmp_path):
    (document,) = _read(tmp_path, path="package:tinyshakespeare")
    assert "First Citizen:" in document and len(document) > 1_000_000
    with pytest.raises(InputError, match=r"no shipped file has this name; did you mean tinyshakespeare\?"):
        _read(tmp_path, path="package:shakespeare")
    with pytest.raises(InputError, match=r"no shipped file has this name"):
        _read(tmp_path, path="package:../config")


def test_empty_documents_are_skipped_and_counted(tmp_path):
    path = _write(tmp_path / "a.jsonl", ["x", "", "y", ""])
    store = tokenize_text("s", _config(tmp_path / "cache", path=str(path)), BYTES)
    assert store["offsets"].tolist() == [0, 3, 6]
    assert store.meta == {"empty_documents": 2}


def test_synthetic_documents(tmp_path):
    made = {"kind": "synthetic", "documents": 20, "length": 64, "symbols": 10}
    cycle = tokenize_text("s", _config(tmp_path, **made), BYTES)
    same = tokenize_text(
        "s", _config(tmp_path / "elsewhere", format="synthetic", documents=20, length=64, symbols=10), BYTES
    )
    other = tokenize_text("s", _config(tmp_path, corpus_seed=1, **made), BYTES)
    random = tokenize_text("s", _config(tmp_path, pattern="random", **made), BYTES)
    assert cycle.digest == same.digest
    assert len({cycle.digest, other.digest, random.digest}) == 3
    for begin, end in zip(cycle["offsets"][:-1], cycle["offsets"][1:], strict=True):
        bos, *symbols, eos = cycle["tokens"][begin:end].tolist()
        assert (bos, eos) == (256, 257) and 32 <= len(symbols) <= 96
        assert set(np.diff(symbols) % 10) == {(symbols[1] - symbols[0]) % 10}
    with pytest.raises(InputError, match=r"s.symbols: 999 is more than the 256 ordinary tokens"):
        tokenize_text("s", _config(tmp_path, kind="synthetic", symbols=999), BYTES)


# ---- defects -------------------------------------------------------------------------------------------------------

GOOD = b'{"text": "x"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a.txt: the file is empty"),
        ("a.txt", b"ok\nna\xefve", r"a.txt: line 2: not UTF-8 \(byte 5"),
        ("a.txt", "größe".encode()[:3], r"a.txt: line 1: not UTF-8 .*truncated"),
        ("a.jsonl", b"\n \n", r"a.jsonl: contains no document"),
        ("a.jsonl", b'{"text": ""}\n', r"every document is empty"),
        ("a.jsonl", GOOD + b'{"text": "a', r"a.jsonl: line 2: not JSON.*truncated"),
        ("a.jsonl", GOOD + b"{'text': 1}\n" + GOOD, r"a.jsonl: line 2: not JSON"),
        ("a.jsonl", GOOD + b'{"txt": "x"}\n', r"line 2: no field 'text'; did you mean txt\? \(fields: txt\)"),
        ("a.jsonl", b'{"text": ["x"]}\n', r"line 1: field 'text' is list; expected text"),
        ("a.jsonl", b"[1]\n", r"line 1: expected a JSON object with 'text', got list"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"line 1: not UTF-8"),
        ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', r"line 2: character 0 is half a character"),
        ("a.jsonl", b"[" * 200_000 + b"\n", r"line 1: JSON nested too deeply"),
        ("a.parquet", b"", r"a.parquet: the file is empty"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet: .*damaged, truncated or not Parquet"),
        ("a.array_record", b"x" * 500, r"a.array_record: .*damaged, truncated or not ArrayRecord"),
        ("a.csv", b"a,b", r"no format has the ending '.csv'"),
    ],
)
def test_a_bad_file_raises_one_error_with_file_and_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path, path=str(path))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("cache/tokens/*.partial"))


def test_bad_parquet_and_array_records(tmp_path):
    parquet = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "n": [1, 2]}), parquet)
    with pytest.raises(InputError, match=r"a.parquet: row 1: column 'text' is null"):
        _read(tmp_path, path=str(parquet))
    with pytest.raises(InputError, match=r"row 0: column 'n' is int"):
        _read(tmp_path, path=str(parquet), field="n")
    with pytest.raises(InputError, match=r"no column 'texts'; did you mean text\? \(columns: text, n\)"):
        _read(tmp_path, path=str(parquet), field="texts")
    records = tmp_path / "a.array_record"
    _records(records, [b'{"text": "x"}', b"raw"])
    with pytest.raises(InputError, match=r"record 1: not JSON.*field: null"):
        _read(tmp_path, path=str(records))
    whole = records.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:150] + bytes([whole[150] ^ 1]) + whole[151:]):
        records.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a.array_record: .*damaged, truncated"):
            _read(tmp_path, path=str(records))


def test_paths_that_do_not_exist(tmp_path):
    (tmp_path / "corpus.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "corpsu.txt": r"data.sources.s.path: .*no such file or folder.*did you mean corpus.txt\?",
        tmp_path / "empty": r"contains no file that ends in",
        tmp_path / "*.jsonl": r"no file matches",
    }.items():
        with pytest.raises(InputError, match=message):
            _read(tmp_path, path=str(path))


@pytest.mark.parametrize(
    ("source", "key", "message"),
    [
        ({}, "", "set `path`"),
        ({"path": []}, "", "set `path`"),
        ({"kind": "synthetic", "path": "x.txt"}, ".path", "a key of kind: files or kind: text or .*; this one is of "
         "kind: synthetic"),
        ({"kind": "synthetic", "format": "text"}, ".format", "'text' is not one of synthetic"),
        ({"path": "x.txt", "weight": 0.0}, ".weight", "greater than 0"),
        ({"path": "x.jsonl", "format": "jsonl", "split_on": "a"}, ".split_on", "a key of kind: files or kind: text; "
         "this one is of kind: jsonl"),
        ({"path": "x", "length": 4}, ".length", "a key of kind: synthetic; this one is of kind: files"),
        ({"path": "x.jsonl", "field": None}, ".field", r"null \(the record itself .* requires format: array_record"),
        ({"path": "x", "format": "parquet", "field": None}, ".field", r"null .* requires format: array_record"),
        ({"path": "x.txt", "wieght": 1.0}, ".wieght", "unknown key; did you mean data.sources.s.weight?"),
        ({"path": "x.txt", "fromat": "text"}, ".fromat", "unknown key; did you mean data.sources.s.format?"),
        ({"path": "x", "format": "jsnl"}, ".format", "'jsnl' is not one of text, jsonl, .*; did you mean jsonl?"),
        ({"path": "x", "kind": "openai"}, ".kind", "^openai is a format of trajectories; use kind: trajectories, "),
        ({"path": "x", "kind": "jsonl", "format": "openai"}, ".format", "use format: trajectories, "),
        ({"path": "x", "format": "ShareGPT"}, ".format", "^sharegpt is a format of trajectories; use format: traj"),
        ({"path": "x", "format": "prompt-completion"}, ".format", "^prompt_completion is a format of trajectories; "),
        ({"path": "x", "kind": "jsnl"}, ".kind", "'jsnl' is not one of files, text, .*; did you mean jsonl?"),
        ({"path": "x", "kind": "jsonl", "format": "text"}, ".format", "'text' is not one of jsonl"),
        ({"path": "x", "trajectories": {"overlap": 0.5}}, ".trajectories", "a key of kind: trajectories; this one is "
         "of kind: files"),
        ({"path": "x", "format": "trajectories", "field": "y"}, ".field", "a key of .*; this one is of kind: traj"),
        ({"path": "x", "format": "trajectories", "trajectories": {"overlp": 0.5}}, ".trajectories.overlp",
         r"unknown key; did you mean data.sources.s.trajectories.overlap\?"),
        ({"path": "x", "format": "trajectories", "trajectories": {}, "weight": 0.0}, ".weight", "greater than 0"),
    ],
)  # fmt: skip
def test_configs_that_make_no_sense(source, key, message):
    document = strict_yaml.Document({"data": {"sources": {"s": source}}}, {"": strict_yaml.Location("a test")}, [])
    _, problems = validation.check(_Config, document)
    assert [problem.key for problem in problems] == [f"data.sources.s{key}"]
    assert re.search(message, problems[0].message), problems[0].message


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_of_trajectories_is_answered_with_the_format_that_finds_it(name):
    source = {"path": "x.jsonl", "format": name}
    document = strict_yaml.Document({"data": {"sources": {"s": source}}}, {"": strict_yaml.Location("a test")}, [])
    (problem,) = validation.check(_Config, document)[1]
    said = f"{name} is a format of trajectories; use format: trajectories, which finds it by itself"
    assert (problem.key, problem.message) == ("data.sources.s.format", said)


class _Config(Section):
    data: DataConfig


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "array_record", "trajectories"])
def test_format_is_another_name_of_the_kind_of_files(kind):
    sources = {"a": {"path": "x", "format": kind}, "b": {"path": "x", "kind": kind},
               "c": {"path": "x", "kind": "files", "format": kind}}  # fmt: skip
    read = DataConfig.model_validate({"sources": sources})
    assert read.sources["a"] == read.sources["b"] == read.sources["c"]
    assert read.sources["a"].model_dump()["kind"] == kind and "format" not in read.sources["a"].model_dump()
    assert DataConfig.model_validate(read.model_dump()) == read


def test_every_field_of_the_config_is_described():
    for section in (DataConfig, *SOURCES.members.values()):
        assert set(section.model_fields) <= set(descriptions(section))


# ---- cache ---------------------------------------------------------------------------------------------------------


def test_cache_folder_comes_from_config_then_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path / "env"))
    sources = {"s": SyntheticSource()}
    assert DataConfig(sources=sources).cache == tmp_path / "env"
    assert DataConfig(sources=sources, cache_dir=str(tmp_path / "own")).cache == tmp_path / "own"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache folder .*data.cache_dir or MAVERICK_CACHE"):
        tokenize_text("s", _config(tmp_path / "file", kind="synthetic"), BYTES)


def test_a_source_is_tokenized_once_and_again_when_its_file_changes(tmp_path, monkeypatch):
    path = _write(tmp_path / "a.jsonl", TEXTS)
    config = _config(tmp_path / "cache", path=str(path))
    first = tokenize_text("s", config, BYTES)
    with monkeypatch.context() as no_reading:
        no_reading.setattr(prepare._Tokenization, "run", lambda *_: pytest.fail("tokenized twice"))
        assert tokenize_text("s", config, BYTES).digest == first.digest
    path.touch()
    assert tokenize_text("s", config, BYTES).digest == first.digest
    _write(path, [*TEXTS, "more"])
    assert tokenize_text("s", config, BYTES).digest != first.digest


@pytest.mark.parametrize("damage", ["flip", "cut", "contents", "name"])
def test_a_damaged_cache_is_detected_and_rebuilt(tmp_path, caplog, damage):
    path = _write(tmp_path / "a.jsonl", TEXTS)
    config = _config(tmp_path / "cache", path=str(path))
    before = tokenize_text("s", config, BYTES)
    expected = before["tokens"].tolist()
    tokens, contents = before.path / "tokens.bin", before.path / array_folder.CONTENTS
    whole = tokens.read_bytes()
    if damage == "flip":
        tokens.write_bytes(whole[:5] + bytes([whole[5] ^ 1]) + whole[6:])
    elif damage == "cut":
        tokens.write_bytes(whole[:-2])
    elif damage == "contents":
        contents.write_bytes(contents.read_bytes()[:40])
    else:
        contents.write_text(contents.read_text().replace('"tokens"', '"../../../etc/passwd"'))
    with pytest.raises(array_folder.DamagedFolder):
        array_folder.open_folder(before.path)
    with caplog.at_level(logging.WARNING):
        assert tokenize_text("s", config, BYTES)["tokens"].tolist() == expected
    assert "is damaged" in caplog.text and "rebuilding it" in caplog.text


def test_large_arrays_are_checked_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(array_folder, "BLOCK", 64)
    monkeypatch.setattr(array_folder, "MAX_BLOCKS_CHECKED", 3)
    folder = tmp_path / "f"
    folder.mkdir()
    dtype = array_folder.write_array(folder, "a", np.arange(1000, dtype=np.uint16))
    array_folder.seal(folder, {"a": dtype}, {})
    np.testing.assert_array_equal(array_folder.open_folder(folder)["a"], np.arange(1000))
    whole = (folder / "a.bin").read_bytes()
    for at in (0, len(whole) - 1):
        (folder / "a.bin").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(array_folder.DamagedFolder, match="checksum"):
            array_folder.open_folder(folder)


@pytest.mark.parametrize("stop_after", [1, 3, 6, 8])
def test_an_interrupted_tokenization_resumes(tmp_path, monkeypatch, stop_after):
    monkeypatch.setattr(prepare, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(prepare, "COMMIT_BYTES", 1)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abc":
        _write(folder / f"{name}.jsonl", [f"{name}{i}" * (i % 4) for i in range(7)])
    whole = tokenize_text("s", _config(tmp_path / "whole", path=str(folder)), BYTES)
    config = _config(tmp_path / "cache", path=str(folder))
    calls = []

    def killed(self, texts):
        calls.append(texts)
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        return [list(text.encode()) for text in texts]

    with monkeypatch.context() as dying:
        dying.setattr(type(BYTES), "_encode_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize_text("s", config, BYTES)
    (unfinished,) = (tmp_path / "cache" / "tokens").glob("*.partial")
    with (unfinished / "tokens.bin").open("ab") as file:
        file.write(b"what was on its way")
    again = []
    monkeypatch.setattr(type(BYTES), "_encode_batch", lambda _, t: again.append(t) or [list(x.encode()) for x in t])
    resumed = tokenize_text("s", config, BYTES)
    assert resumed.digest == whole.digest and resumed.meta == whole.meta
    assert len(again) == 12 - (stop_after - 1)


# ---- values that resumed runs depend on ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "fingerprints"),
    [
        (
            {"sources": {"tinyshakespeare": {"path": "package:tinyshakespeare"}}},
            ["c1b95a20f4376463", "6a3f4f6bb175b49f"],
        ),
        (
            {"sources": {"toy_shop": {"path": "package:toy_shop", "format": "trajectories"}}, "sequence_length": 256},
            ["380a26d989f104b0", "7644691da5fa64fa"],
        ),
        (
            {"sources": {"toy_shop": {"path": "package:toy_shop", "format": "trajectories", "trajectories": {
                "overlap": 0.5, "balance_decisions": 4.0, "dialect": "meta_json"}}},
             "sequence_length": 256, "kind_weights": {"user": 0.5}},
            ["d82519636599eb39", "7114afc2d01f5dba"],
        ),
        (
            {"sources": {"s": {"kind": "synthetic", "symbols": 16, "documents": 40, "pattern": "random",
                              "corpus_seed": 3}}, "sequence_length": 64},
            ["191ffe02d03da5d3", "b3ce94bc27a6372d"],
        ),
        (
            {"sources": {"s": {"format": "synthetic"}}, "sequence_length": 64, "packing": "best_fit"},
            ["bef3bf6ee1c06d3c", "64646f3d3ae6d943"],
        ),
    ],
)  # fmt: skip
def test_fingerprints_equal_those_of_the_first_release(tmp_path, config, fingerprints):
    """A run resumes only if its data has the fingerprint in its checkpoints. These fingerprints were computed when all
    sources shared one config section."""
    data = DataConfig.model_validate(config | {"cache_dir": str(tmp_path)})
    assert [open_dataset(data, split, seed=7).fingerprint[:16] for split in ("train", "eval")] == fingerprints


@pytest.mark.parametrize(
    ("name", "source", "identity"),
    [
        ("a.txt", {}, ["text", ""]),
        ("a.txt", {"format": "text", "split_on": "\n"}, ["text", "\n"]),
        ("a.txt", {"split_on": "\n"}, ["text", "\n"]),
        ("a.jsonl", {}, ["jsonl", "text"]),
        ("a.jsonl", {"format": "jsonl", "field": "body"}, ["jsonl", "body"]),
        ("a.parquet", {"field": "body"}, ["parquet", "body"]),
        ("a.array_record", {"format": "array_record", "field": None}, ["array_record", ""]),
    ],
)
def test_the_cache_identifies_a_file_by_path_size_time_and_options(tmp_path, name, source, identity):
    path = tmp_path / name
    path.write_bytes(b"x")
    config = _config(tmp_path, path=str(path), **source).sources["s"]
    (part,) = config.parts("s", BYTES)
    assert part.identity() == [str(path.resolve()), 1, path.stat().st_mtime_ns, *identity]


def test_the_key_of_tokenized_data(tmp_path):
    path = _write(tmp_path / "a.jsonl", TEXTS)
    store = tokenize_text("s", _config(tmp_path / "cache", path=str(path)), BYTES)
    stat = path.stat()
    part = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, "jsonl", "text"]
    key = hashlib.sha256(json.dumps([1, BYTES.fingerprint, [part]]).encode()).hexdigest()[:32]
    assert store.path == tmp_path / "cache" / "tokens" / key
