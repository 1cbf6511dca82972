"""The lines of refused updates."""

import json

import numpy as np
import pytest

from maverick_jax.errors import NonFiniteBudgetSpent
from train.faults.bad_updates import BadUpdates
from train.faults.config import GuardConfig
from train.faults.rollback import GoBack, Rollback, RollbackConfig, Rollbacks
from train.faults.spikes import SCORE, SpikesConfig
from train.metrics_writer import MetricsWriter

GUARD = GuardConfig(spikes=SpikesConfig(threshold=5.0))
BACK = GuardConfig(rollback=RollbackConfig(after=2, times=1))


def values(loss: float, norm: float, score: float) -> dict:
    return {"loss": np.float32(loss), "grad_norm": np.float32(norm), SCORE: np.float32(score)}


def lines(run_dir) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (values(2.0, 1.0, 5.0), None, ""),
        (values(9.5, 1.0, 5.5), {"refused": "spike", SCORE: 5.5, "refused_loss": 9.5}, "a spike of 5.5 deviations"),
        (values(np.nan, 1.0, 0.0), {"refused": "non_finite", "refused_loss": "NaN"}, "are not finite"),
        (values(2.0, np.inf, 0.0), {"refused": "non_finite", "refused_grad_norm": "Infinity"}, "are not finite"),
    ],
)
def test_a_refused_update_is_named_with_its_rows(tmp_path, caplog, found, expected, said):
    hook = BadUpdates(MetricsWriter(tmp_path), GUARD, batch_size=8)
    hook.on_metrics(7, found, 1.0)
    if expected is None:
        assert lines(tmp_path) == [] and not caplog.text
        return
    (line,) = lines(tmp_path)
    assert line == line | expected | {"step": 7, "rows": [48, 55]}
    assert "step 7: update refused" in caplog.text and "rows 48 to 55" in caplog.text and said in caplog.text


def test_rows_of_a_stage_count_from_its_start(tmp_path):
    hook = BadUpdates(MetricsWriter(tmp_path, stage="long"), GUARD, batch_size=4, first=5)
    hook.on_metrics(7, values(np.nan, 1.0, 0.0), 1.0)
    (line,) = lines(tmp_path)
    assert line["rows"] == [4, 7] and line["stage"] == "long"


def test_without_a_gate_there_are_no_spikes(tmp_path):
    metrics = {"loss": np.float32(1e9), "grad_norm": np.float32(1e9)}
    BadUpdates(MetricsWriter(tmp_path), GuardConfig(), batch_size=8).on_metrics(1, metrics, 1.0)
    assert lines(tmp_path) == []


# ---- too many in a row -----------------------------------------------------------------------------------------------

GOOD, BAD = values(2.0, 1.0, 0.0), values(np.nan, 1.0, 0.0)
ONCE = Rollbacks((Rollback(at=30, to=20, batches=(20, 29)),))


def test_bad_updates_in_a_row_go_back(tmp_path):
    hook = BadUpdates(MetricsWriter(tmp_path), BACK, batch_size=8)
    for step, metrics in enumerate([BAD, GOOD, BAD], 1):
        hook.on_metrics(step, metrics, 1.0)
    with pytest.raises(GoBack) as error:
        hook.on_metrics(4, BAD, 1.0)
    assert (error.value.first, error.value.last, error.value.before) == (3, 4, Rollbacks())


def test_a_resumed_run_goes_on_counting(tmp_path):
    """From what the checkpoint between two bad updates tells."""
    before = BadUpdates(MetricsWriter(tmp_path), BACK, batch_size=8)
    before.on_metrics(3, BAD, 1.0)
    assert before.record() == {"refused_since": 3}
    resumed = BadUpdates(MetricsWriter(tmp_path, step=3), BACK, batch_size=8, since=before.record()["refused_since"])
    with pytest.raises(GoBack):
        resumed.on_metrics(4, BAD, 1.0)


def test_a_run_that_has_gone_back_too_often_ends(tmp_path):
    hook = BadUpdates(MetricsWriter(tmp_path), BACK, batch_size=8, rollbacks=ONCE)
    hook.on_metrics(25, BAD, 1.0)
    with pytest.raises(
        NonFiniteBudgetSpent, match="since step 25 were refused, and the run has gone back 1 time"
    ) as error:
        hook.on_metrics(26, BAD, 1.0)
    assert error.value.exit_code == 79


def test_the_update_after_a_roll_back_has_a_line_of_it(tmp_path):
    hook = BadUpdates(MetricsWriter(tmp_path), BACK, batch_size=8, rollbacks=ONCE)
    hook.on_metrics(20, GOOD, 1.0)
    hook.on_metrics(21, BAD, 1.0)
    went_back, refused = lines(tmp_path)
    assert went_back == {"step": 21, "rolled_back_from": 30, "left_out_rows": [160, 239]}
    assert refused["rows"] == [240, 247], "of batch 30"
    assert hook.record() == {"rollbacks": ONCE.record(), "refused_since": 21}
