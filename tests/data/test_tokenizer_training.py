"""`maverick data tokenizer`: byte-level BPE trained on a config's sources."""

import hashlib
import json
import sysconfig

import pytest
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from data.config import DataConfig
from data.tokenizer_training import PIECE, show, train_tokenizer
from launch import cli
from maverick_jax.errors import InputError
from maverick_jax.text import load_tokenizer
from maverick_jax.text.tokenizers.byte_pairs import CONTROLS, LEAST_ENTRIES, MOST_ENTRIES

SHAKESPEARE = {"path": "package:tinyshakespeare"}
STANDARD_LIBRARY = {"path": sysconfig.get_paths()["stdlib"] + "/*.py", "kind": "text"}
SAMPLES = [
    "First Citizen:\nBefore we proceed any further, hear me speak.",
    "def naïve(x: int) -> str:\r\n\treturn f'{x:>12}'  # 東京 🙂 <|eot|>",
    "   \n\n  1234567 don't DON'T\u00a0x",
    "".join(map(chr, range(0x20, 0x250))),
]


def config_of(**sources) -> DataConfig:
    return DataConfig.model_validate({"sources": sources})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tokenizer of 4,096 entries and its report. Do not change its folder."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    return folder, train_tokenizer(config_of(shakespeare=SHAKESPEARE), folder, 4096)


def test_ids_are_those_of_the_tokenizers_library(trained):
    folder, _ = trained
    ours, theirs = load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    assert ours.vocab_size == theirs.get_vocab_size() == 4096
    for text in SAMPLES:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text


def test_every_byte_and_every_control_token_has_its_id(trained):
    tokenizer = load_tokenizer(trained[0])
    assert list(tokenizer.controls.values()) == list(range(4096 - len(CONTROLS), 4096))
    assert {
        "<|begin_of_text|>",
        "<|eot|>",
        "<|python_start|>",
        "<|patch|>",
        "<|fim_prefix|>",
    } <= tokenizer.controls.keys()
    assert not any("reserved" in name for name in tokenizer.controls)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (
        tokenizer.controls["<|begin_of_text|>"],
        tokenizer.controls["<|end_of_text|>"],
    )
    vocabulary = tokenizers.Tokenizer.from_file(str(trained[0] / "tokenizer.json")).get_vocab()
    assert len(alphabet := ByteLevel.alphabet()) == 256
    assert vocabulary.keys() >= set(alphabet)


def test_control_tokens_in_a_text_stay_text(trained):
    tokenizer = load_tokenizer(trained[0])
    assert not set(tokenizer.encode("".join(CONTROLS))) & set(tokenizer.controls.values())


def test_equal_sources_give_an_equal_tokenizer(trained, tmp_path):
    train_tokenizer(config_of(shakespeare=SHAKESPEARE), tmp_path / "again", 4096)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (trained[0] / "tokenizer.json").read_bytes()


def test_the_report_judges_text_that_was_not_trained_on(trained):
    source = trained[1]["sources"]["shakespeare"]
    assert source["bytes"] == 1_115_394
    assert 0.02 < source["judged_bytes"] / source["bytes"] < 0.1
    assert source["compared_bytes_per_token"] == 1.0  # bytes
    assert 3 < source["bytes_per_token"] < 4.5


def test_text_that_is_judged_changes_nothing(tmp_path):
    """Two corpora that differ only in pieces that are judged give one tokenizer."""
    judged = next(
        t for t in (f"{i} zyzzyva " * 50 for i in range(10_000)) if hashlib.sha256(t.encode()).digest()[0] % 20 == 0
    )
    kept = [
        t for t in (f"the house number {i} " * 40 for i in range(400)) if hashlib.sha256(t.encode()).digest()[0] % 20
    ]
    for name, texts in (("without", kept), ("with", [*kept, judged])):
        assert all(len(text) <= PIECE for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        train_tokenizer(config_of(texts={"path": str(tmp_path / f"{name}.jsonl")}), tmp_path / name, LEAST_ENTRIES + 20)
    assert (tmp_path / "with" / "tokenizer.json").read_bytes() == (tmp_path / "without" / "tokenizer.json").read_bytes()


def test_no_more_bytes_are_read_than_asked_for(tmp_path):
    found = train_tokenizer(config_of(shakespeare=SHAKESPEARE), tmp_path / "out", 400, most_bytes=100_000)
    assert 100_000 <= found["sources"]["shakespeare"]["bytes"] < 100_000 + 4 * PIECE


def test_documents_that_evaluations_have_teach_nothing(tmp_path):
    """The tokenizer is the one of a source without them."""
    kept = [f"the house number {i} stands in street {i} " * 40 for i in range(200)]
    leaked = "qqzzkk " + " ".join(f"wwyyxx{chr(97 + i)}" for i in range(20)) * 30
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": leaked}))
    for name, texts in (("without", kept), ("with", [*kept, leaked])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = {}
    for name in ("without", "with"):
        source = {"path": str(tmp_path / f"{name}.jsonl"), "decontaminate": {"files": [str(tmp_path / "eval.jsonl")]}}
        found[name] = train_tokenizer(config_of(texts=source), tmp_path / name, LEAST_ENTRIES + 20)
    assert (tmp_path / "with" / "tokenizer.json").read_bytes() == (tmp_path / "without" / "tokenizer.json").read_bytes()
    assert "left out 1 that evaluations have" in show(found["with"]) and "left out" not in show(found["without"])
    of_with, of_without = (found[name]["sources"]["texts"] for name in ("with", "without"))
    (of_file,) = of_with.pop("contaminated").values()
    assert of_file["documents"] == 1 and of_without.pop("contaminated") == {} and of_with == of_without


@pytest.mark.slow  # half a minute
def test_32_000_entries_are_learned_from_real_code(tmp_path):
    sources = config_of(code=STANDARD_LIBRARY, shakespeare=SHAKESPEARE)
    found = train_tokenizer(sources, tmp_path / "out", 32_000)
    ours, theirs = (
        load_tokenizer(tmp_path / "out"),
        tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")),
    )
    theirs.encode_special_tokens = True
    assert ours.vocab_size == 32_000
    assert all(ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids for text in SAMPLES)
    assert found["sources"]["code"]["bytes_per_token"] > 3.5


@pytest.mark.parametrize("size", [LEAST_ENTRIES, MOST_ENTRIES + 1])
def test_sizes_out_of_range_are_refused(tmp_path, size):
    with pytest.raises(InputError, match=rf"{size:,} entries; expected more than {LEAST_ENTRIES}"):
        train_tokenizer(config_of(shakespeare=SHAKESPEARE), tmp_path / "out", size)
    assert not (tmp_path / "out").exists()


def test_texts_that_give_too_few_entries_are_refused(tmp_path):
    (tmp_path / "short.txt").write_text("a short text " * 30)
    with pytest.raises(InputError, match=r"the texts give \d+ entries; expected 1,000"):
        train_tokenizer(config_of(short={"path": str(tmp_path / "short.txt")}), tmp_path / "out", 1000)
    assert not (tmp_path / "out").exists()


def test_sources_without_text_are_refused(tmp_path):
    toy = {"kind": "trajectories", "path": "package:toy_shop"}
    with pytest.raises(InputError, match=r"data\.sources\.toy: no source of documents.*--source: shakespeare"):
        train_tokenizer(config_of(toy=toy, shakespeare=SHAKESPEARE), tmp_path / "out", 400)
    with pytest.raises(InputError, match="has token ids, no text"):
        train_tokenizer(config_of(made={"kind": "synthetic"}), tmp_path / "out", 400)
    with pytest.raises(InputError, match=r"no source 'shakespear'; did you mean shakespeare"):
        train_tokenizer(config_of(shakespeare=SHAKESPEARE), tmp_path / "out", 400, only=["shakespear"])


def test_the_command_makes_a_tokenizer_that_a_run_reads(tmp_path, capsys):
    out = str(tmp_path / "tokenizer")
    assert cli.main(["data", "tokenizer", "pretrain_tiny", out, "--vocab-size", "512", "--most-gb", "0.0003"]) == 0
    assert "512 entries" in capsys.readouterr().out
    options = [f"data.tokenizer={out}", f"data.cache_dir={tmp_path / 'cache'}", "model.vocab_size=512"]
    assert cli.main(["data", "stats", "pretrain_tiny", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"]["vocab_size"] == 512
