"""Roll-backs: which batches they leave out, their record, and runs that go back, are killed and resumed."""

import dataclasses
import itertools
import json
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError, NonFiniteBudgetSpent
from tests.helpers.small_run import assert_same_run, cut_back, lines, store
from train.batches import Feed
from train.config import RunConfig
from train.config_files import read_config
from train.faults.rollback import FILE, GoBack, Rollback, Rollbacks, goes_back
from train.objectives import Pretrain
from train.run import train_to_end


def rollbacks(*batches: tuple[int, int]) -> Rollbacks:
    return Rollbacks(tuple(Rollback(at=last + 1, to=first, batches=(first, last)) for first, last in batches))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rollbacks(), [0, 1, 2, 3, 4, 5]),
        (rollbacks((2, 4)), [0, 1, 5, 6, 7, 8]),
        (rollbacks((2, 4), (5, 5)), [0, 1, 6, 7, 8, 9]),
        (rollbacks((2, 4), (6, 7)), [0, 1, 5, 8, 9, 10]),
        (rollbacks((6, 7), (0, 1)), [2, 3, 4, 5, 8, 9]),  # the older checkpoint was damaged
        (rollbacks((2, 4), (1, 6)), [0, 7, 8, 9, 10, 11]),
    ],
)
def test_left_out_batches_are_passed_over(found, expected):
    assert [found.batch_of(update) for update in range(1, 7)] == expected
    for start in range(6):
        pieces = list(found.pieces(start, 6))
        assert [number for piece in pieces for number in piece] == expected[start:]
        assert all(one.stop < other.start for one, other in itertools.pairwise(pieces))


@pytest.mark.parametrize(
    ("steps", "to", "batches"),
    [([4, 8, 12], 8, (8, 11)), ([10, 11], 10, (10, 11)), ([11, 12], 11, (11, 11)), ([], 0, (0, 11))],
)
def test_it_goes_to_the_newest_checkpoint_before_the_bad_updates(steps, to, batches):
    """Where all are newer, the oldest: bad updates have changed nothing."""
    assert Rollbacks().after(11, 12, steps).done == (Rollback(at=12, to=to, batches=batches),)


def test_a_second_one_counts_in_the_batches_after_the_first():
    assert rollbacks((8, 11)).after(14, 15, [8, 12]).done[1] == Rollback(at=15, to=12, batches=(16, 18))


def test_what_earlier_stages_left_out_moves_no_batch_of_a_stage():
    stage = dataclasses.replace(rollbacks((2, 4), (12, 13)), since=10)
    assert [stage.batch_of(update) for update in (11, 12, 13, 14)] == [10, 11, 14, 15]
    assert stage.after(14, 15, [10, 12]).done[-1] == Rollback(at=15, to=12, batches=(14, 16))


def saved(tmp_path, *steps: int, **meta) -> CheckpointStore:
    found = CheckpointStore(tmp_path / "checkpoints")
    for step in steps:
        found.save(step, {"x": jnp.float32(step)}, meta, wait=True)
    return found


def test_it_deletes_newer_checkpoints_and_is_recorded(tmp_path):
    there = saved(tmp_path, 4, 8, 12)
    with goes_back(there.directory):
        raise GoBack(11, 12, Rollbacks())
    assert there.steps() == [4, 8]
    assert Rollbacks.at(there, 8).record() == [{"at": 12, "to": 8, "batches": [8, 11]}]
    with pytest.raises(InputError), goes_back(there.directory):
        raise InputError("another error")
    assert there.steps() == [4, 8]


def test_checkpoints_repeat_the_record(tmp_path):
    there = saved(tmp_path, 8, rollbacks=rollbacks((2, 4)).record())
    assert Rollbacks.at(there, 8) == rollbacks((2, 4))
    (tmp_path / FILE).write_text(json.dumps(rollbacks((2, 4), (6, 7)).record()))
    assert Rollbacks.at(there, 8) == rollbacks((2, 4), (6, 7)), "one that came after the checkpoint"


@pytest.mark.parametrize("record", ["[", '{"at": 1}', '[{"at": -1, "to": 0, "batches": [0, 1]}]', "[" * 10**5, "[1]"])
def test_a_damaged_record_is_refused(tmp_path, record):
    (tmp_path / FILE).write_text(record)
    with pytest.raises(InputError, match=r"rollbacks\.json: cannot be read"):
        Rollbacks.at(saved(tmp_path), 0)


def test_the_record_of_another_run_is_refused(tmp_path):
    there = saved(tmp_path, 8, rollbacks=rollbacks((2, 4)).record())
    (tmp_path / FILE).write_text(json.dumps(rollbacks((2, 5)).record()))
    with pytest.raises(InputError, match="differs from what the checkpoint of step 8 records"):
        Rollbacks.at(there, 8)


# ---- runs ------------------------------------------------------------------------------------------------------------

SPIKES, NANS, STEPS = (10, 11), (17, 18), 20
WORDS = [
    *(f"run.steps={STEPS}", "run.eval_every=0", "checkpoint.every=4", "optimizer.accumulation_steps=1"),
    *("model.num_hidden_layers=1", "model.num_local_experts=0"),
    *("guard.spikes={window: 4}", "guard.rollback={after: 2, times: 2}"),
]


class Poisoned(Pretrain):
    """Its loss is far too high on some batches and not a number on others, which the sums of their tokens identify."""

    kind: Literal["pretrain"] = "pretrain"
    high: tuple[int, ...] = ()
    nan: tuple[int, ...] = ()

    def totals(self, batch):
        return super().totals(batch) | {"identity": jnp.sum(batch["tokens"])}

    def metrics(self, model, sums, totals, context):
        found = super().metrics(model, sums, totals, context)
        among = lambda known: jnp.isin(totals["identity"], known)
        high, nan = (among(jnp.array(known, jnp.int32)) for known in (self.high, self.nan))
        return found | {"loss": jnp.where(nan, jnp.nan, found["loss"] + 20 * high.astype(jnp.float32))}


def config(runs, run_dir, *words: str) -> RunConfig:
    """Of a small run, whose data is bad in the batches SPIKES and NANS."""
    found = read_config(runs.config, [f"run.dir={run_dir}", f"data.cache_dir={runs.root / 'cache'}", *WORDS, *words])
    rows = Feed.open(found).train
    sums = lambda batch: int(sum(rows.row(8 * batch + row)["tokens"].sum() for row in range(8)))
    poisoned = Poisoned(high=tuple(map(sums, SPIKES)), nan=tuple(map(sums, NANS)))
    return found.model_copy(update={"objective": poisoned})


@pytest.fixture(scope="module")
def gone_back(runs):
    """A run that went back twice, uninterrupted."""
    train_to_end(config(runs, runs.root / "gone_back"))
    return runs.root / "gone_back"


@pytest.mark.slow
def test_a_run_goes_back_twice_and_finishes(gone_back):
    assert json.loads((gone_back / FILE).read_text()) == [
        {"at": 12, "to": 8, "batches": [8, 11]},
        {"at": 15, "to": 12, "batches": [16, 18]},
    ]
    found = lines(gone_back)
    assert [line["step"] for line in found if "loss" in line] == list(range(1, STEPS + 1))
    assert [line for line in found if "loss" not in line] == [
        {"step": 9, "rolled_back_from": 12, "left_out_rows": [64, 95]},
        {"step": 13, "rolled_back_from": 15, "left_out_rows": [128, 151]},
    ]
    assert all(np.isfinite(line["loss"]) and line["loss"] < 8 for line in found if "loss" in line)
    assert found[-1]["skipped"] == 0 and store(gone_back).meta(STEPS)["rollbacks"][1]["at"] == 15


@pytest.mark.slow
@pytest.mark.parametrize(("step", "record"), [(8, True), (4, False)])
def test_a_killed_run_that_went_back_resumes_to_the_same_bits(gone_back, runs, tmp_path, step, record):
    """Without the record, it was killed before the roll-backs that its checkpoint does not know: it does them again."""
    run_dir = cut_back(gone_back, tmp_path / "run", step)
    if not record:
        (run_dir / FILE).unlink()
    train_to_end(config(runs, run_dir))
    assert_same_run(gone_back, run_dir, STEPS)
    assert (run_dir / FILE).read_bytes() == (gone_back / FILE).read_bytes()


def test_a_run_goes_back_only_so_often(gone_back, runs, tmp_path, caplog):
    run_dir = cut_back(gone_back, tmp_path / "run", 12)
    (run_dir / FILE).unlink()  # the first is in the checkpoint
    with pytest.raises(NonFiniteBudgetSpent, match="since step 14 were refused, and the run has gone back 1 time"):
        train_to_end(config(runs, run_dir, "guard.rollback.times=1"))
    refused = [(line["step"], line["refused"], line["rows"]) for line in lines(run_dir) if "refused" in line]
    assert refused == [(14, "non_finite", [136, 143]), (15, "non_finite", [144, 151])]
    assert "step 15: update refused" in caplog.text
