"""A run that is killed again and again, on changing numbers of processes, ends in the bits of the run that was not."""

import random

import pytest

from tests.faults.conftest import STEPS, WORDS
from tests.helpers.killing import Job, check, compare, finish, kill_one, kills_of


@pytest.mark.parametrize(
    "kills",
    [[(2, "saved"), (1, "save")], pytest.param([(4, "saved"), (2, "save"), (4, "update")], marks=pytest.mark.slow)],
    ids=["two", "four"],
)
def test_killed_on_changing_topologies(kills, runs, parent, whole, tmp_path):
    """Once after a save, once in one; then the rest. Each start is in another layout than the one before."""
    luck = random.Random(0)
    for count, moment in kills:
        job = Job(runs, parent, tmp_path / "run", count, *WORDS)
        kill = kill_one(job, moment, luck)
        assert kill is not None, "the run ended before it was killed"
        check(kill, job, STEPS)
    finish(runs, parent, tmp_path / "run", *WORDS)
    compare(whole, tmp_path / "run", STEPS)


@pytest.mark.slow
def test_killed_twenty_times(runs, parent, tmp_path):
    finish(runs, parent, tmp_path / "whole", "run.steps=100")
    kills = list(kills_of(runs, parent, tmp_path / "run", random.Random(1), 100))
    assert len(kills) >= 20
    compare(tmp_path / "whole", tmp_path / "run", 100)
