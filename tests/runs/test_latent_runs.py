"""Runs whose stages replace steps of thoughts by latents: stopped or killed, they end as an uninterrupted run."""

import pathlib
import random

import pytest

from tests.helpers.small_run import assert_same_run, checksums, cut_back, lines
from tests.runs.test_run_killed import kill
from train.config_files import read_run
from train.run import train_to_end

CONFIG = """
run: {name: thinking}
model:
  base: tiny
  vocab_size: 274
  hidden_size: 16
  num_hidden_layers: 2
  num_attention_heads: 2
  num_key_value_heads: 2
  head_dim: 8
  intermediate_size_mlp: 16
  num_local_experts: 0
  no_rope_layer_interval: 2
  latent: {token_id: 273, passes: 3, gradient: 2}
data: {tokenizer: bytes_thinking, batch_size: 16, sequence_length: 64}
objective: trajectory
optimizer: {learning_rate: 3e-3, warmup_steps: 2, schedule: constant}
checkpoint: {every: 2, keep: 60}
logging: {every: 1, progress: false}
"""
SOURCE = "{latents: {kind: chain, documents: 400, latents: {replaced: 3, mix: 0.5}}}"
"""Two questions in each row, with 0 to 3 latents each."""
STAGES = f"""
stages:
  - name: text
    steps: 3
    model: {{latent: {{token_id: 273, passes: 0}}}}
    data: {{sources: {{text: {{kind: chain, documents: 400}}}}}}
  - {{name: latents, steps: 5, data: {{sources: {SOURCE}}}}}
"""
MORE = ("run.eval_every=4", "run.eval_batches=1", "optimizer.accumulation_steps=2", "data.batch_size=32")


def train(config: pathlib.Path, run_dir: pathlib.Path, *words: str) -> pathlib.Path:
    """Trains in this process, on its eight devices."""
    train_to_end(read_run(str(config), [f"run.dir={run_dir}", f"data.cache_dir={config.parent}/c", *words]))
    return run_dir


def test_a_run_that_stopped_among_latents_ends_in_the_same_bits(tmp_path):
    """After a checkpoint by which the feedback has been trained."""
    config, words = tmp_path / "run.yaml", ["run.steps=4", f"data.sources={SOURCE}"]
    config.write_text(CONFIG)
    whole = train(config, tmp_path / "whole", *words)
    assert checksums(whole, 2)["model/latent/matrix"] != checksums(whole, 4)["model/latent/matrix"]
    assert_same_run(whole, train(config, cut_back(whole, tmp_path / "run", 2), *words), 4)


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> pathlib.Path:
    """A run whose second stage has latents, uninterrupted. Tests must not change it."""
    config = tmp_path_factory.mktemp("thinking") / "run.yaml"
    config.write_text(CONFIG + STAGES)
    return train(config, config.parent / "whole", *MORE)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 6])
def test_a_run_that_stopped_in_or_between_its_stages_ends_in_the_same_bits(staged, tmp_path, step):
    """In the stage of text, at the border to that of latents, and in that."""
    run_dir = cut_back(staged, tmp_path / "run", step)
    assert_same_run(staged, train(staged.parent / "run.yaml", run_dir, *MORE), 8)


@pytest.mark.slow
def test_a_run_with_latents_is_killed_four_times(runs, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG + STAGES)
    words, how = ["stages.0.steps=40", "stages.1.steps=80"], {"config": config, "devices": 1}
    runs.train(tmp_path / "whole", *words, **how)
    luck, run_dir = random.Random(0), tmp_path / "run"
    for moment in ("save", "any", "step", "save"):
        kill(runs.start(run_dir, *words, **how), run_dir, moment, luck)
    assert f"restored checkpoint {run_dir}/checkpoints/" in runs.train(run_dir, *words, **how)
    assert_same_run(tmp_path / "whole", run_dir, lines(tmp_path / "whole")[-1]["step"])
