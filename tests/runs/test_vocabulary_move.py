"""A run that starts from a model of bytes and moves it to a trained tokenizer: loss before, training, export, chat."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from maverick_jax.initialization import from_model
from maverick_jax.initialization.from_model import initial_weights, move_of
from maverick_jax.pretrained import abstract_model, export, load_pretrained
from maverick_jax.sharding import single_device_mesh
from maverick_jax.text import load_tokenizer, same_tokens
from maverick_jax.text.tokenizers.byte_pairs import train_byte_pairs
from maverick_jax.text.tokenizers.vocabulary_move import VocabularyMove
from tests.helpers.small_run import REPOSITORY, losses
from train.config_files import read_config

TEXT = (REPOSITORY / "data" / "assets" / "tinyshakespeare.txt").read_text()
HELD_OUT = TEXT[-8192:]
ENTRIES = 512


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_pairs(TEXT[:400_000].splitlines(keepends=True), ENTRIES, folder)
    return folder


def moving(runs, source: pathlib.Path, tokenizer: pathlib.Path, *words: str):
    start = f"model={{init_from: {source}, init_vocabulary: true, compute_dtype: float32}}"
    return read_config(runs.config, [start, f"data.tokenizer={tokenizer}", *words])


def moved(config):
    return initial_weights(abstract_model(config.model.network, single_device_mesh()), config.start, 0)


def nll(model, rows: np.ndarray) -> float:
    logits = np.asarray(model.logits(rows[:, :-1]), np.float64)
    found = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, rows[:, 1:, None], -1)[..., 0]
    return float(found.mean())


def new_ids(move: VocabularyMove) -> dict[int, int]:
    """Old id -> the new one that keeps its row."""
    begins = np.cumsum(move.counts) - move.counts
    return {int(move.pieces[begins[i]]): int(i) for i in np.flatnonzero(move.counts == 1)}


def test_rows_follow_their_tokens_and_shared_logits_stay(runs, whole_run, tokenizer, caplog):
    caplog.set_level("INFO")
    config, old = moving(runs, whole_run, tokenizer), load_pretrained(whole_run)
    assert config.start is not None
    move, model = move_of(config.model.network, old.config, config.start), moved(config)
    assert config.model.vocab_size == ENTRIES and "tokens keep their rows, " in caplog.text
    there, here = (np.array(list(ids)) for ids in (new_ids(move), new_ids(move).values()))
    table, head, old_table, old_head = (np.asarray(x) for m in (model, old) for x in (m.embed[...], m.head[...]))
    np.testing.assert_array_equal(table[here], old_table[there])
    np.testing.assert_array_equal(head[:, here], old_head[:, there])
    rows = np.frombuffer(HELD_OUT[: 4 * 33].encode()[: 4 * 33], np.uint8).reshape(4, 33).astype(np.int32)
    mapped = np.vectorize(new_ids(move).__getitem__)(rows)
    found, expected = (np.asarray(m.logits(ids)) for m, ids in ((model, mapped), (old, rows)))
    np.testing.assert_allclose(found[..., here], expected[..., there], atol=1e-5)
    scratch = np.flatnonzero(move.counts == 0)
    assert scratch.size and np.all(np.std(table[scratch], axis=1) > 0)


@pytest.mark.slow
def test_a_moved_model_keeps_its_loss_and_goes_on_with_fewer_tokens(runs, tokenizer, tmp_path, monkeypatch):
    """The control is the plain mean of pieces in the output matrix, which takes probability from the old tokens."""
    source, new = runs.root / "of_bytes", load_tokenizer(tokenizer)
    runs.train(source, "run.steps=300", "run.eval_every=0", "checkpoint.every=300")
    config, old = moving(runs, source, tokenizer), load_pretrained(source)
    assert config.start is not None
    move = move_of(config.model.network, old.config, config.start)
    rows = np.frombuffer(HELD_OUT.encode()[: 64 * 33], np.uint8).reshape(64, 33).astype(np.int32)
    mapped, before = np.vectorize(new_ids(move).__getitem__)(rows), nll(old, rows)
    assert before < 2.6 and abs(nll(moved(config), mapped) / before - 1) < 0.01
    plain = dataclasses.replace(move, unused=np.array([], np.int64))
    monkeypatch.setattr(from_model, "move_of", lambda *_: plain)
    assert nll(moved(config), mapped) / before > 1.01
    bytes_per_token = len(HELD_OUT.encode()) / len(new.encode(HELD_OUT))
    assert bytes_per_token > 1.5

    run_dir = tmp_path / "moved"
    words = [f"model={{init_from: {source}, init_vocabulary: true}}", f"data.tokenizer={tokenizer}", "run.steps=100"]
    said = runs.train(run_dir, *words, "run.eval_every=0", "checkpoint.every=100")
    assert f"vocabulary: from that of {source}" in said and str(move) in said
    after = np.mean(losses(run_dir)[-20:])
    assert after < np.mean(losses(run_dir)[:5]) and after / bytes_per_token < before + 0.2  # nats per byte

    export(run_dir, tmp_path / "home", dtype="float32")
    home, again = load_pretrained(tmp_path / "home"), load_tokenizer(tmp_path / "home")
    ids = np.array([again.encode(HELD_OUT)[:16]], np.int32)
    assert same_tokens(again, new) and home.config.vocab_size == ENTRIES
    np.testing.assert_allclose(home.logits(ids), load_pretrained(run_dir).logits(ids), atol=1e-5)
    chat = [sys.executable, "-m", "launch.cli", "chat", str(tmp_path / "home"), "--max-tokens", "4"]
    subprocess.run(chat, input="Hello\n", text=True, check=True, env=runs.environment(), cwd=tmp_path)
