"""Held-out loss: which rows it is of, by source and over all."""

import functools
import io

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import ShardingRules, single_device_mesh
from tests.helpers import tiny
from train.batches import Feed
from train.config_files import read_config
from train.evaluation.held_out import HeldOut, even_shares
from train.evaluation.tables import show
from train.objectives import Pretrain
from train.objectives.base import Context
from train.step import eval_step

MODEL = tiny.model_config(vocab_size=272, num_hidden_layers=2, num_local_experts=0)


def small(tmp_path, sources: str, *words: str):
    (tmp_path / "small.yaml").write_text(
        "run: {name: small, steps: 1, eval_every: 1, eval_batches: 8}\n"
        "model: {base: tiny}\n"
        f"data: {{sources: {{{sources}}}, batch_size: 4, sequence_length: 16, cache_dir: '{tmp_path / 'cache'}'}}\n"
    )
    return read_config(str(tmp_path / "small.yaml"), words)


def text(tmp_path, name: str, words: str, count: int, more: str = "") -> str:
    """A source of `count` documents of 16 bytes, half of them held out."""
    (tmp_path / f"{name}.txt").write_text("|".join((words * 14)[:14] for _ in range(count)))
    return f"{name}: {{path: '{tmp_path / name}.txt', split_on: '|', held_out_fraction: 0.5{more}}}"


@pytest.fixture(scope="module")
def measured():
    """`measured(config)`: what an evaluation reports of one model, and the HeldOut it is of."""
    with jax.set_mesh(single_device_mesh()):
        model = jax.jit(lambda: Maverick(MODEL, ShardingRules(), rngs=nnx.Rngs(0)))()

    def measure(config):
        held_out = HeldOut.of(config)
        with jax.set_mesh(single_device_mesh()):
            return held_out.measure(Pretrain())(model, Context(jax.numpy.zeros((), "int32"), {}, {})), held_out

    measure.model = model
    return measure


def by_hand(measured, config, rows: dict[str, int]) -> dict[str, tuple[float, float]]:
    """(sum of losses, labels) of the first `rows` held-out rows of each source, one row at a time."""
    data = Feed.open(config, "eval").train
    step = jax.jit(functools.partial(eval_step, objective=Pretrain()))
    found = {}
    for source in data.sources:
        sums = []
        for at in range(rows[source.name]):
            batch = {name: field[None, None] for name, field in source.row(at).items()}
            with jax.set_mesh(single_device_mesh()):
                got = step(measured.model, tiny.placed(batch), Context(jax.numpy.zeros((), "int32"), {}, {}))
            sums.append([float(got["loss"]), float(got["weight"])])
        found[source.name] = tuple(np.sum(sums, axis=0).tolist())
    return found


def test_each_source_has_its_loss_and_the_whole_is_over_all_labels(tmp_path, measured):
    """The audit's case: weights 0.1 and 0.9, more held-out rows than batches."""
    a, b = text(tmp_path, "a", "abc ", 80, ", weight: 1"), text(tmp_path, "b", "xyzw!", 80, ", weight: 9")
    found, held_out = measured(config := small(tmp_path, f"{a}, {b}"))
    assert held_out.batches_of == {"a": 4, "b": 4}
    expected = by_hand(measured, config, {"a": 16, "b": 16})
    for name, (loss, labels) in expected.items():
        assert found["eval_source_loss"][name] == pytest.approx(loss / labels, rel=1e-5)  # another order of sums
        assert found["eval_source_tokens"][name] == labels
    whole = [sum(part) for part in zip(*expected.values(), strict=True)]
    assert found["eval_loss"] == pytest.approx(whole[0] / whole[1], rel=1e-5)
    assert found["eval_tokens"] == whole[1]
    assert abs(found["eval_source_loss"]["a"] - found["eval_source_loss"]["b"]) > 1e-3


def test_a_source_that_does_not_fill_a_batch_counts_each_of_its_rows_once(tmp_path, measured):
    a, b = text(tmp_path, "a", "abc ", 80), text(tmp_path, "b", "xyzw!", 4)
    found, held_out = measured(config := small(tmp_path, f"{a}, {b}"))
    assert held_out.batches_of == {"a": 7, "b": 1}
    expected = by_hand(measured, config, {"a": 28, "b": 2})
    assert found["eval_source_tokens"] == {name: labels for name, (_, labels) in expected.items()}
    assert found["eval_source_loss"]["b"] == pytest.approx(expected["b"][0] / expected["b"][1], rel=1e-5)


def test_a_source_that_is_only_held_out_is_evaluated_too(tmp_path, measured):
    a = text(tmp_path, "a", "abc ", 80)
    b = text(tmp_path, "b", "xyzw!", 80).replace("held_out_fraction: 0.5", "held_out_fraction: 1")
    c = text(tmp_path, "c", "none.", 80).replace("held_out_fraction: 0.5", "held_out_fraction: 0")
    found, _ = measured(small(tmp_path, f"{a}, {b}, {c}"))
    assert list(found["eval_source_loss"]) == ["a", "b"]


def test_of_one_source_the_batches_and_the_sums_are_as_they_were(tmp_path, measured):
    """To the bit: batches of all held-out rows in turn, sums on the device, one division."""
    config = small(tmp_path, text(tmp_path, "a", "abc ", 80))
    found, held_out = measured(config)
    assert "eval_source_loss" not in found
    step = jax.jit(functools.partial(eval_step, objective=Pretrain()))
    with jax.set_mesh(single_device_mesh()), Feed.open(config, "eval").batches(0, 8) as batches:
        sums = [step(measured.model, batch, Context(jax.numpy.zeros((), "int32"), {}, {})) for batch in batches]
        total = functools.reduce(functools.partial(jax.tree.map, jax.numpy.add), sums)
    assert found["eval_loss"] == float(total["loss"]) / float(total["weight"])


def test_rows_after_the_last_of_a_source_are_empty(tmp_path):
    data = Feed.open(small(tmp_path, text(tmp_path, "a", "abc ", 8)), "eval").train
    alone, rows = data.only("a"), data.num_rows()
    assert all(np.array_equal(alone.row(i)[name], data.row(i)[name]) for i in range(rows) for name in data.row(0))
    after = alone.row(rows)
    assert not any(field.any() for field in after.values())
    assert {name: field.dtype for name, field in after.items()} == {n: f.dtype for n, f in data.row(0).items()}


@pytest.mark.parametrize(
    ("wanted", "available", "shares"),
    [(8, [9], [8]), (8, [3], [3]), (8, [9, 9], [4, 4]), (8, [9, 9, 9], [3, 3, 2]), (8, [1, 9, 2], [1, 5, 2]),
     (2, [9, 9, 9], [1, 1, 1]), (100, [3, 4], [3, 4])],
)  # fmt: skip
def test_batches_are_shared_evenly(wanted, available, shares):
    assert even_shares(wanted, available) == shares


def test_a_terminal_shows_the_loss_by_source():
    console = Console(file=io.StringIO(), width=100)
    show({"eval_loss": 2.0, "eval_source_loss": {"web": 2.5}, "eval_source_tokens": {"web": 1000, "code": 0}}, console)
    lines = console.file.getvalue().splitlines()
    assert any("web" in line and "1,000" in line and "2.500" in line for line in lines)
    assert any("code" in line and "-" in line for line in lines)
