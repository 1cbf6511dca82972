"""What the loop adds to a step, and what is compiled when."""

import json
import re

import jax
import jax.numpy as jnp

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.sharding import single_device_mesh
from tests.small_run import STEPS, log_of
from train import hooks
from train.batches import Feed
from train.config import read_config
from train.loop import fit
from train.metrics import MetricsWriter

COMPILING = re.compile(r"^W jax\S*: Compiling jit\((.*?)\)")  # JAX says it a second time, in a form of its own


def test_nothing_is_compiled_after_the_first_of_everything(whole_run):
    """Step, save and evaluation have all happened once when the first evaluation ends."""
    said = log_of(whole_run).splitlines()
    compiled = [(number, found[1]) for number, line in enumerate(said) if (found := COMPILING.search(line))]
    assert [name for _, name in compiled].count("train_step") == 1
    first_evaluation = next(number for number, line in enumerate(said) if "train.hooks: step 6:" in line)
    assert any(f"train.hooks: step {STEPS}:" in line for line in said[first_evaluation:])
    assert [name for number, name in compiled if number > first_evaluation] == []


def test_the_loop_costs_a_step_less_than_2_ms(runs, tmp_path, monkeypatch):
    """Wall time of a step that computes nothing, fed from the real data through the real loop and hooks."""
    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
    config, stop = read_config(runs.config), 1000
    feed, store = Feed.open(config), CheckpointStore(tmp_path / "checkpoints")

    @jax.jit
    def step(state, batch):
        per_layer = {f"router_{name}": jnp.zeros(2) for name in ("load_max", "entropy", "idle", "balance")}
        loss = jnp.sum(batch["loss_weights"])
        return state + 1, {"loss": loss, "grad_norm": loss, "learning_rate": loss, "skipped": jnp.int32(0), **per_layer}

    save = hooks.Checkpoint(store, lambda step, state: ({"state": state}, {}), last_step=stop)
    writer = MetricsWriter(tmp_path, config.logging)
    beside = [
        hooks.TrainingLines(writer, every=20, last_step=stop, tokens_per_step=256),
        hooks.NonFiniteBudget(3),
        save,
    ]
    with jax.set_mesh(single_device_mesh()), feed.batches(0, stop) as batches:
        fit(step, jnp.int32(0), batches, start=0, stop=stop, hooks=beside)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["step_seconds"] for line in lines[1:]]
    assert len(seconds) == stop // 20 - 1
    # A quiet tenth of the run: what else the machine does can only make the others longer.
    assert sorted(seconds)[len(seconds) // 10] < 2e-3, seconds
