"""Bad numbers in real runs of several processes: found, named, bounded, and the run goes on to the same end."""

import json
import signal

import pytest

from data.config import DataConfig
from data.rows.dataset import open_dataset
from maverick_jax.settings import strict_yaml
from tests.faults.conftest import WORDS
from tests.helpers.killing import Job, config, finish, last_update
from tests.helpers.small_run import checksums, lines, log_of, store, wait_for

STEPS = 24
GUARDED = (
    *(f"run.steps={STEPS}", "run.eval_every=0", "checkpoint.every=4", "checkpoint.keep=30"),
    *("guard.spikes={window: 4}", "guard.rollback={after: 2, times: 2}"),
)


@pytest.fixture(scope="module")
def sums(runs, parent, whole):
    """The sum of the tokens of each batch. The run's config is not read whole: its plugins would stay registered."""
    section = strict_yaml.read(config(runs)).data["data"]
    data = DataConfig.model_validate(section | {"cache_dir": str(runs.root / "cache")})
    train = open_dataset(data, "train", seed=0)
    rows = lambda n: [train.row(n * data.batch_size + g) for g in range(data.batch_size)]
    return [int(sum(row["tokens"].sum() for row in rows(n))) for n in range(STEPS + 8)]


def poisoned(sums, spikes=(), nans=()) -> tuple[str, ...]:
    among = lambda batches: str([sums[n] for n in batches])
    return (*GUARDED, f"objective.spikes={among(spikes)}", f"objective.nans={among(nans)}")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_roll_back_as_one_does(count, sums, runs, parent, tmp_path):
    """Two spikes, then two losses that are not numbers; each time two in a row."""
    words = poisoned(sums, spikes=(10, 11), nans=(17, 18))
    finish(runs, parent, tmp_path / "one", *words)
    finish(runs, parent, tmp_path / "run", *words, count=count)
    one, found = lines(tmp_path / "one"), lines(tmp_path / "run")
    assert found == one
    assert [line["step"] for line in found if "rolled_back_from" in line] == [9, 13]
    assert [line["left_out_rows"] for line in found if "rolled_back_from" in line] == [[64, 95], [128, 151]]
    assert checksums(tmp_path / "run", STEPS) == checksums(tmp_path / "one", STEPS)
    said = log_of(tmp_path / "run", "log-0")
    assert said.count("update refused: a spike") == 2 and said.count("update refused: loss or gradients") == 2
    assert said.count("rolling back from step") == 2


@pytest.mark.slow
def test_a_run_that_is_killed_around_its_roll_back_ends_the_same(sums, runs, parent, tmp_path):
    words = poisoned(sums, spikes=(10, 11))
    finish(runs, parent, tmp_path / "one", *words)
    for stop in (7, 9, 11):
        job = Job(runs, parent, tmp_path / "run", 2, *words)
        wait_for(lambda at=stop: last_update(tmp_path / "run") >= at, job.processes[0])
        job.processes[1].kill()
        assert job.finish() == [76, -signal.SIGKILL], job.said_by_all
    finish(runs, parent, tmp_path / "run", *words)
    assert lines(tmp_path / "run") == lines(tmp_path / "one")
    assert checksums(tmp_path / "run", STEPS) == checksums(tmp_path / "one", STEPS)


@pytest.mark.slow
def test_a_run_that_goes_back_too_often_ends_with_79(sums, runs, parent, tmp_path):
    words = poisoned(sums, nans=range(6, STEPS + 8))
    job = Job(runs, parent, tmp_path / "run", 2, *words)
    assert job.finish() == [79, 79], job.said_by_all
    assert "the run has gone back 2 time(s)" in job.said()
    assert all(store(tmp_path / "run").verify(step) == [] for step in store(tmp_path / "run").steps())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_flipped_bit_in_one_replica_ends_all_with_80(count, runs, parent, tmp_path):
    """In device 5, after update 5. The comparison before the save of update 6 finds it, and nothing is saved."""
    words = (*WORDS, "guard.compare_every=3")
    rank = 5 * count // 8
    job = Job(runs, parent, tmp_path / "run", count, *words, inject={"phase": "step", "at": 5, "rank": rank, "flip": 5})
    assert job.finish() == [80] * count, job.said_by_all
    assert store(tmp_path / "run").steps() == [2, 4]
    last = lines(tmp_path / "run")[-1]
    assert (last["step"], last["replicas_differ"], last["fault"]) == (6, ["model/norm"], "transient")
    assert len(last["devices"]) == 1 and f"; process {rank}, host " in job.said()


@pytest.mark.slow
def test_a_slow_process_is_named(runs, parent, tmp_path):
    job = Job(
        runs, parent, tmp_path / "run", 4, *WORDS, "run.steps=12",
        inject={"phase": "step", "at": 2, "rank": 3, "seconds": 1.0},
    )  # fmt: skip
    assert job.finish() == [0] * 4, job.said_by_all
    assert "process 3 is slow: it takes " in job.said()
    read = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    named = [line["slowest_rank"] for line in read if "slowest_rank" in line]
    assert named[-1] == 3
