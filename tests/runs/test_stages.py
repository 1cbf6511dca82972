"""Runs in stages: one stage is the run without stages; a run that dies anywhere ends as the uninterrupted one."""

import json
import pathlib
import random
import shutil
import signal
import time

import pytest

from launch.cli import main
from tests.helpers.small_run import (
    assert_same_run,
    checksums,
    contents,
    cut_back,
    lines,
    log_of,
    losses,
    store,
)
from tests.maverick_jax.checkpoint.test_store import flip, largest
from train.config_files import read_run
from train.run import train_to_end

CONFIG = """
run: {name: staged, eval_batches: 1}
model:
  base: tiny
  hidden_size: 16
  num_hidden_layers: 2
  num_attention_heads: 2
  num_key_value_heads: 2
  head_dim: 8
  intermediate_size_mlp: 16
  num_local_experts: 0
  no_rope_layer_interval: 2
  attention_chunk_size: 8
  local_attention: sliding_window
data:
  sources: {tinyshakespeare: {path: "package:tinyshakespeare"}}
  tokenizer: bytes
  batch_size: 8
  sequence_length: 16
optimizer: {learning_rate: 2e-3, warmup_steps: 2, schedule: cosine}
checkpoint: {every: 2, keep: 2}
logging: {every: 1, progress: false}
"""
STAGES = """
stages:
  - {name: window, steps: 3}
  - name: chunked
    tokens: 1024
    run: {eval_every: 3}
    model: {local_attention: chunked, attention_chunk_size: 16}
    data: {sequence_length: 32}
  - name: long
    steps: 3
    model: {local_attention: chunked, attention_chunk_size: 16, rope_theta: 40000.0}
    data:
      sequence_length: 64
      sources: {toy_shop: {kind: trajectories, path: "package:toy_shop"}}
    objective: trajectory
    optimizer: {learning_rate: 1e-3, warmup_steps: 0, schedule: wsd, decay_fraction: 1.0, min_ratio: 0.5}
"""
LAST = 10
PLAIN = "run.steps=4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("staged")
    (folder / "plain.yaml").write_text(CONFIG)
    (folder / "staged.yaml").write_text(CONFIG + STAGES)
    return folder


def train(folder: pathlib.Path, run_dir: pathlib.Path, *words: str, config: str = "staged") -> pathlib.Path:
    """Trains in this process, on its eight devices."""
    train_to_end(read_run(str(folder / f"{config}.yaml"), [f"run.dir={run_dir}", f"data.cache_dir={folder}/c", *words]))
    return run_dir


@pytest.fixture(scope="module")
def whole(folder) -> pathlib.Path:
    """The run in three stages, uninterrupted. Tests must not change it."""
    return train(folder, folder / "whole", "checkpoint.keep=30")


# ---- one stage, or several that change nothing -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(folder) -> pathlib.Path:
    """A run without stages."""
    return train(folder, folder / "plain", PLAIN, config="plain")


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(4,), (1, 3)], ids=["one", "two"])
def test_stages_that_change_nothing_are_the_run_without_stages(folder, plain, tmp_path, lengths):
    stages = ", ".join(f"{{name: s{i}, steps: {steps}}}" for i, steps in enumerate(lengths))
    staged = train(folder, tmp_path / "run", f"stages=[{stages}]", config="plain")
    assert checksums(staged, 4) == checksums(plain, 4)
    found = lines(staged)
    names = [line.pop("stage") for line in found]
    assert found == lines(plain)
    assert names == [f"s{i}" for i, steps in enumerate(lengths) for _ in range(steps)]


# ---- three stages ----------------------------------------------------------------------------------------------------


def test_each_line_names_its_stage_and_borders_are_kept(folder, whole, tmp_path):
    names = {line["step"]: line["stage"] for line in lines(whole)}
    assert [names[step] for step in range(1, LAST + 1)] == ["window"] * 3 + ["chunked"] * 4 + ["long"] * 3
    assert [line["step"] for line in lines(whole) if "eval_loss" in line] == [6, 7]
    rates = [line["learning_rate"] for line in lines(whole) if "loss" in line]
    assert rates[7:] == pytest.approx([1e-3, 1e-3 * 5 / 6, 1e-3 * 4 / 6], rel=1e-5)  # its own segment
    assert rates[:3] == sorted(rates[:3]) and rates[3:7] == sorted(rates[3:7], reverse=True)  # one cosine
    tokens = [line["tokens"] for line in lines(whole) if "loss" in line]
    assert tokens[:7] == [128, 256, 384, 640, 896, 1152, 1408]
    few = cut_back(whole, tmp_path / "run", 4)
    train(folder, few)
    assert [int(p.name) for p in sorted((few / "checkpoints").iterdir(), key=lambda p: int(p.name))] == [3, 7, 8, 10]
    assert_same_run(whole, few, LAST)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 7, 8])
def test_a_run_that_dies_at_a_border_or_in_the_middle_ends_the_same(folder, whole, tmp_path, step):
    run_dir = cut_back(whole, tmp_path / "run", step)
    assert_same_run(whole, train(folder, run_dir, "checkpoint.keep=30"), LAST)


@pytest.mark.slow
def test_a_damaged_border_is_trained_up_to_again(folder, whole, tmp_path, caplog):
    run_dir = cut_back(whole, tmp_path / "run", 7)
    flip(largest(run_dir / "checkpoints" / "7", "arrays"))
    train(folder, run_dir, "checkpoint.keep=30")
    assert store(run_dir).set_aside() == ["7.corrupt-1"]
    assert_same_run(whole, run_dir, LAST)


@pytest.mark.slow
def test_it_goes_on_on_another_mesh_in_the_middle_of_the_second_stage(folder, whole, tmp_path):
    """Losses are those of the other mesh to rounding, and the third stage goes back to the mesh it was planned for."""
    run_dir = cut_back(whole, tmp_path / "run", 4)
    train(folder, run_dir, "checkpoint.keep=30", "stages.1.mesh={data: 2, fsdp: 4}")
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-4)
    tokens = lambda run: [line["tokens"] for line in lines(run) if "loss" in line]
    assert tokens(run_dir) == tokens(whole)


def test_what_begins_anew_is_said(folder, whole, tmp_path, caplog):
    """Moments go on unless the optimizer is of another kind; the objective that begins has no scalars."""
    run_dir = cut_back(whole, tmp_path / "run", 7)
    caplog.set_level("INFO")
    with pytest.raises(Exception, match="checked") as error:
        _until_trained(folder, run_dir, "stages.2.optimizer={kind: muon}")
    assert "checked" in str(error.value)
    assert "stage long: moments of the optimizer: begin anew, because the kind was adamw and is muon" in caplog.text
    caplog.clear()
    with pytest.raises(Exception, match="checked"):
        _until_trained(folder, run_dir, "stages.2.trainable={parameters: [attention]}")
    assert "stage long: goes on with the state of step 7" in caplog.text and "begin anew" not in caplog.text


def _until_trained(folder, run_dir, *words) -> None:
    """Trains up to the first compilation of a step."""
    from unittest.mock import patch

    with patch("train.run.compile_step", side_effect=Exception("checked")):
        train(folder, run_dir, *words)


def test_a_run_whose_stages_have_changed_is_refused(folder, whole, tmp_path):
    from maverick_jax.errors import InputError

    run_dir = cut_back(whole, tmp_path / "run", 4)
    before = contents(run_dir)
    with pytest.raises(InputError, match=r"stages\.window\.steps: 3 there, 2 here"):
        train(folder, run_dir, "stages.0.steps=2")
    assert contents(run_dir) == before


def test_doctor_and_eval_know_the_stage_of_a_checkpoint(folder, whole, capsys):
    assert main(["doctor", str(whole)]) == 0
    out = capsys.readouterr().out
    assert "step 3 (window): intact" in out and "step 10 (long): intact" in out
    assert main(["eval", str(whole / "checkpoints" / "7"), "--json", "run.eval_batches=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["eval_tokens"] == 8 * 32


# ---- real kills ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_twelve_random_moments(runs, tmp_path):
    """Rows of 256, 1,024 and 4,096 tokens. Borders included: two of the kills come right after the last checkpoint of a
    stage."""
    path = tmp_path / "staged.yaml"
    path.write_text(CONFIG + STAGES)
    how = {"config": path, "devices": 1}
    words = ["run.eval_every=10", "checkpoint.every=4", "optimizer.warmup_steps=4", "model.attention_chunk_size=64"]
    words += ["stages.0.steps=30", "stages.1.tokens=65536", "stages.2.steps=30"]
    for i, (length, rows, chunk) in enumerate([(256, 4, 64), (1024, 2, 256), (4096, 1, 1024)]):
        words += [f"stages.{i}.data={{sequence_length: {length}, batch_size: {rows}}}"]
        words += [f"stages.{i}.model.attention_chunk_size={chunk}"]
    words += ["stages.2.data.sources={toy_shop: {kind: trajectories, path: 'package:toy_shop'}}"]
    runs.train(tmp_path / "whole", *words, **how)
    last = lines(tmp_path / "whole")[-1]["step"]
    luck, run_dir = random.Random(0), tmp_path / "run"
    moments = ["any", "any", "border", "border", *["step"] * 8]
    luck.shuffle(moments)
    for moment in moments:
        _kill(runs.start(run_dir, *words, **how), run_dir, moment, luck)
    runs.train(run_dir, *words, **how)
    assert_same_run(tmp_path / "whole", run_dir, last)
    assert log_of(run_dir).count("run staged in") >= 3
    shutil.rmtree(run_dir)


def _kill(process, run_dir: pathlib.Path, moment: str, luck: random.Random) -> None:
    """Sends SIGKILL after a save, after the last save of a stage, or at any time."""
    names = lambda: {p.name for p in (run_dir / "checkpoints").glob("[0-9]*") if p.name.isdigit()}
    before, end = names(), time.monotonic() + 20 * luck.random()
    borders = {"30", "62"} - before
    wanted = {"any": lambda: time.monotonic() > end, "step": lambda: names() - before,
              "border": lambda: names() & borders if borders else names() - before}[moment]  # fmt: skip
    while process.poll() is None and not wanted():
        time.sleep(0.001)
    time.sleep(0.05 * luck.random())
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0), log_of(run_dir)
