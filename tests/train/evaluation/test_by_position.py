"""Held-out loss by position in the document, against whole logits of one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import ShardingRules, single_device_mesh
from tests.helpers import tiny
from train.config_files import read_config
from train.evaluation.by_position import buckets, loss_by_position
from train.evaluation.held_out import HeldOut


def test_buckets_double_and_the_last_one_ends_with_the_row():
    assert buckets(16) == [16] and buckets(32) == [32] and buckets(100) == [32, 64, 100] and buckets(64) == [32, 64]


def test_the_means_are_those_of_the_labels_in_each_bucket(tmp_path):
    (tmp_path / "text.txt").write_text("|".join("abcdefgh" * (3 + 2 * i) for i in range(12)))
    (tmp_path / "small.yaml").write_text(
        "run: {name: small, steps: 1, eval_every: 1, eval_batches: 2}\nmodel: {base: tiny}\n"
        f"data: {{sources: {{t: {{path: '{tmp_path / 'text.txt'}', split_on: '|', held_out_fraction: 0.9}}}}, "
        f"batch_size: 2, sequence_length: 96, packing: best_fit, cache_dir: '{tmp_path / 'cache'}'}}\n"
    )
    held_out = HeldOut.of(read_config(str(tmp_path / "small.yaml")))
    config = tiny.model_config(vocab_size=272, num_hidden_layers=2, num_local_experts=0)
    sums, counts = np.zeros(3), np.zeros(3)
    with jax.set_mesh(single_device_mesh()):
        model = jax.jit(lambda: Maverick(config, ShardingRules(), rngs=nnx.Rngs(0)))()
        found = loss_by_position(model, held_out)["t"]
        for i in range(2 * held_out.batches_of["t"]):
            row = held_out.feed.train.row(i)
            fields = (jnp.asarray(row[name])[None] for name in ("tokens", "positions", "segment_ids"))
            log_probs = jax.nn.log_softmax(np.asarray(model.logits(*fields))[0], axis=-1)
            for place in np.flatnonzero(row["loss_weights"]):
                bucket = int(np.searchsorted([32, 64, 96], row["positions"][place], side="right"))
                sums[bucket] -= log_probs[place, row["labels"][place]]
                counts[bucket] += 1
    assert found["ends"] == [32, 64, 96] and found["tokens"] == counts.tolist() and (counts > 0).all()
    assert found["loss"] == pytest.approx((sums / counts).tolist(), rel=1e-4)
