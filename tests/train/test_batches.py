"""Batches contain the fields that an objective reads, including a field per row."""

import contextlib
import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.rows.fields import FIELDS, PACKED, BatchField, Row
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.row_split import RowSplit
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from train.batches import Feed, check_cells, check_tiles
from train.config_files import read_config, read_run
from train.faults.rollback import Rollback, Rollbacks
from train.objectives.base import Context, Head, Objective
from train.state import init_state
from train.step import eval_step, train_step

MODEL = tiny.model_config(vocab_size=272, num_hidden_layers=1, num_local_experts=0)
CHUNKS = ["model.attention_chunk_size=4"]
SMOOTH = tiny.OPTIMIZER.model_copy(update={"eps": 1e-5, "learning_rate": 3e-4})


class Scored(Objective):
    """A reward model: a value head on a row's mean hidden state predicts the row's score."""

    kind: Literal["scored"] = "scored"

    def fields(self) -> tuple[str, ...]:
        return (*PACKED, "score")

    def evaluation_fields(self) -> tuple[str, ...]:
        return self.fields()

    def heads(self, model, references) -> tuple[Head, ...]:
        return (Head("value", (model.hidden_size,), (None,), 0.1),)

    def totals(self, batch):
        return {**super().totals(batch), "rows": jnp.float32(batch["score"].size)}

    def loss(self, model, batch, totals, context: Context):
        hidden, stats = model.hidden(Inputs.of(batch))
        values = jnp.mean(hidden.astype(jnp.float32) @ context.heads["value"][...], axis=1)
        error = jnp.sum((values - batch["score"]) ** 2)
        return error / totals["rows"], {"error": error, "router": stats}

    def metrics(self, model, sums, totals, context: Context):
        return {"loss": sums["error"] / totals["rows"]}

    def evaluate(self, model, batch, context: Context):
        totals = self.totals(batch)
        return {"loss": self.loss(model, batch, totals, context)[1]["error"], "weight": totals["rows"]}


def score_of(index: int, row: Row) -> Row:
    return {"score": np.float32(row["tokens"].mean() / 100).reshape(())}


@pytest.fixture
def score(monkeypatch):
    """A new field needs one entry in the table and the code that computes it."""
    field = BatchField("score", (np.dtype(np.float32),), "what the row is worth", shape="per row")
    monkeypatch.setitem(FIELDS, "score", field)


@pytest.fixture
def feed_of(score, tmp_path):
    """`feed_of(*overrides)`: rows of 32 tokens, eight to a batch, each with a score."""

    def make(*overrides: str) -> Feed:
        words = ["data.sequence_length=32", f"data.cache_dir={tmp_path}", *overrides]
        config = read_config("pretrain_tiny", words).model_copy(update={"objective": Scored()})
        feed = Feed.open(config)
        return dataclasses.replace(feed, train=feed.train.with_fields(score_of))

    return make


@pytest.mark.parametrize("words", [(), ("optimizer.accumulation_steps=2", "data.workers=1")])
def test_a_field_per_row_is_sharded_like_its_rows(words, feed_of, mesh_of):
    feed = feed_of(*words)
    A, b, T = feed.shape
    with mesh_of(data=2, fsdp=2, tensor=2):
        like = feed.abstract_batch()
        with feed.batches(0, 2) as batches:
            _, batch = batches
    assert set(batch) == {*PACKED, "score"}
    for name, x in batch.items():
        assert (x.shape, x.dtype, x.sharding) == (like[name].shape, like[name].dtype, like[name].sharding)
    assert batch["score"].shape == (A, b) and batch["score"].sharding.shard_shape((A, b)) == (A, b // 4)
    rows = [feed.train.row(8 + g) for g in range(8)]
    for name, shape in {"score": (A, b), "tokens": (A, b, T)}.items():
        np.testing.assert_array_equal(batch[name], np.stack([row[name] for row in rows]).reshape(shape))


def update(feed: Feed):
    """The state after two updates, their metrics, and the loss of the first batch afterwards."""
    objective, optimizer = feed.config.objective, SMOOTH.build(tiny.STEPS, MODEL, tiny.TRAINABLE.selection())
    parts = {"objective": objective, "optimizer": optimizer}
    init = functools.partial(init_state, config=MODEL, rules=tiny.RULES, heads=objective.heads(MODEL, {}), **parts)
    state, found = jax.jit(init)(0), []
    step = jax.jit(functools.partial(train_step, references={}, **parts))
    with feed.batches(0, 2) as batches:
        both = [*batches]
    for batch in both:
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    context = Context(state.step, state.objective, {}, state.heads)
    sums = jax.jit(functools.partial(eval_step, objective=objective))(state.model, both[0], context)
    return np.asarray(state.heads["value"][...]), found, objective.evaluation_metrics(sums)["loss"]


def test_an_objective_on_rows_learns_equally_in_microbatches_and_on_a_mesh(feed_of, mesh_of):
    with mesh_of(data=1):
        head, losses, after = update(feed_of())
        by_parts = update(feed_of("optimizer.accumulation_steps=4"))
    with mesh_of(data=2, fsdp=2, tensor=2):
        spread = update(feed_of())
    assert after < losses[0]
    for other in (by_parts, spread):
        np.testing.assert_allclose(other[0], head, atol=2e-6, rtol=2e-5)
        np.testing.assert_allclose((*other[1], other[2]), (*losses, after), rtol=1e-5)


def test_rows_without_a_field_that_the_objective_reads_are_an_error(feed_of, mesh_of):
    feed = feed_of()
    with mesh_of(data=1), pytest.raises(ValueError, match="rows have no field 'kinds'"):
        dataclasses.replace(feed, fields=(*feed.fields, "kinds")).abstract_batch()


def test_batches_are_in_the_order_of_the_devices_that_share_rows(tmp_path, monkeypatch, mesh_of):
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path))
    config = read_config("pretrain_tiny", ["data.sequence_length=32", "data.batch_size=4", "data.cell=4", *CHUNKS])
    feed = Feed.open(config)
    rows = [feed.train.row(i) for i in range(4)]
    with mesh_of(context=2), feed.batches(0, 1) as batches:
        (batch,) = batches
        for name in PACKED:
            whole = np.stack([row[name] for row in rows])[:, feed.split.places]
            np.testing.assert_array_equal(np.asarray(batch[name])[0], whole)


def test_a_chunk_on_two_devices_is_refused(tmp_path, monkeypatch, mesh_of):
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path))
    config = read_config("pretrain_tiny", ["data.sequence_length=32", "data.batch_size=4", "data.cell=4", *CHUNKS])
    feed, index = Feed.open(config), np.arange(32, dtype=np.int32)
    second = lambda number, row: {
        "segment_ids": 1 + (index >= 6).astype(np.int32),
        "positions": np.where(index < 6, index, index - 6),
    }
    feed = dataclasses.replace(feed, train=feed.train.with_fields(second))
    said = r"row 0 of a batch: an attention chunk of 4 tokens lies on both sides of place 8, where mesh\.context=2"
    with mesh_of(context=2), feed.batches(0, 1) as batches, pytest.raises(ValueError, match=said):
        next(batches)


@pytest.mark.parametrize(("starts", "fine"), [((0, 8), True), ((0, 4, 12), True), ((0, 6), False), ((0, 7, 8), True)])
def test_cells_are_checked_where_devices_divide_rows(starts, fine):
    """Rows of 16 tokens on two devices are divided after every fourth."""
    segment = np.searchsorted(starts, np.arange(16), "right").astype(np.int32)
    row = {"segment_ids": segment[None], "positions": (np.arange(16) - np.take(starts, segment - 1))[None]}
    refused = contextlib.nullcontext() if fine else pytest.raises(ValueError, match="both sides of place 8")
    with refused:
        check_cells(row, RowSplit(16, 2), tiny.model_config(attention_chunk_size=4))


def test_batches_that_a_roll_back_leaves_out_are_not_read(feed_of, mesh_of):
    feed, left_out = feed_of(), Rollbacks((Rollback(at=5, to=2, batches=(2, 4)), Rollback(at=4, to=3, batches=(6, 6))))
    with mesh_of(data=1):

        def tokens(start: int, stop: int, *rollbacks) -> list[np.ndarray]:
            with feed.batches(start, stop, *rollbacks) as found:
                return [np.asarray(batch["tokens"]) for batch in found]

        plain, found = tokens(0, 9), tokens(1, 5, left_out)
    for number, batch in zip([1, 5, 7, 8], found, strict=True):
        np.testing.assert_array_equal(batch, plain[number])


def _rows_with_tiles(tiles: int | None, patches: int, size: int = 56) -> dict[str, np.ndarray]:
    tokens = np.zeros((2, 16), np.int32)
    tokens[1, :patches] = 270
    rows = {"tokens": tokens}
    return rows if tiles is None else rows | {"tiles": np.zeros((2, tiles, 3, size, size), np.uint8)}


@pytest.mark.parametrize(
    ("model", "rows", "said"),
    [
        ("tiny_vision", _rows_with_tiles(2, 8), None),
        ("tiny_vision", _rows_with_tiles(2, 4), None),
        ("tiny_vision", _rows_with_tiles(None, 0), None),
        ("tiny", _rows_with_tiles(None, 4), None),
        ("tiny_vision", _rows_with_tiles(1, 8), r"8 <\|patch\|> tokens and 1 tiles; expected 4 tokens for each"),
        ("tiny_vision", _rows_with_tiles(2, 6), "row 1 of a batch has 6"),
        ("tiny_vision", _rows_with_tiles(None, 4), "row 1 of a batch has 4 .* and 0 tiles"),
        ("tiny_vision", _rows_with_tiles(1, 4, 28), r"\[3, 28, 28\]; expected \[3, 56, 56\]"),
        ("tiny", _rows_with_tiles(1, 0), "no image encoder"),
    ],
)
def test_a_batch_has_a_feature_for_each_patch_token(model, rows, said):

    refused = contextlib.nullcontext() if said is None else pytest.raises(ValueError, match=said)
    with refused:
        check_tiles(rows, ModelConfig.from_name(model))


@pytest.mark.parametrize("variant", ["base", "instruct", "coder", "medical"])
def test_a_variant_and_its_twin_have_stages_of_the_same_names_and_the_twins_rows_can_be_made(
    variant, tmp_path, monkeypatch
):
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path))
    large, small = (read_run(f"variants_{variant}_{size}") for size in ("h200x512", "tiny"))
    names = lambda run: [stage.name for stage in run.stages]
    without_a_base = [] if variant != "instruct" else ["broad"]  # the twin has no model to go on from
    assert names(small) == without_a_base + names(large)
    with jax.set_mesh(single_device_mesh()):
        for stage in small.in_stages:
            feed = Feed.open(stage)
            with feed.batches(feed.first, feed.first + 1) as batches:
                batch = next(batches)
            assert batch["tokens"].shape[-1] == stage.data.sequence_length
            assert float(jnp.sum(batch["loss_weights"])) > 0
