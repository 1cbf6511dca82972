"""Every known damage of a checkpoint, all in one run: it goes back to the newest intact one and ends the same."""

import json
import shutil
import time

import pytest

from launch.cli import main
from tests.faults.conftest import WORDS
from tests.helpers.killing import Job, checksums, compare, finish
from tests.helpers.small_run import cut_back, lines, store
from tests.maverick_jax.checkpoint.test_store import DAMAGE, empty, truncate

INTACT, STEPS = 2, 24
HARMFUL = [name for name in DAMAGE if name != "a digit of the metadata"]  # of a checkpoint of step 10


def test_every_damage_at_once(runs, parent, tmp_path, capsys, took):
    """A checkpoint of each update; the newest are damaged, each in another way. Two more are none: an empty directory,
    and one that was copied in part."""
    words = (f"run.steps={STEPS}", "checkpoint.every=1", "checkpoint.keep=30", *WORDS[1:2])
    finish(runs, parent, tmp_path / "whole", *words)
    run_dir = cut_back(tmp_path / "whole", tmp_path / "run", INTACT + len(HARMFUL))
    folder = run_dir / "checkpoints"
    for step, damage in enumerate(HARMFUL, INTACT + 1):
        DAMAGE[damage](folder / str(step))
    (folder / "99").mkdir()
    shutil.copytree(folder / str(INTACT), folder / "98", ignore=shutil.ignore_patterns("meta"))

    assert main(["doctor", str(run_dir), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["restorable_step"] == INTACT
    assert sum(bool(entry["problems"]) for entry in found["checkpoints"]) == len(HARMFUL) + 2

    since = time.monotonic()
    job = Job(runs, parent, run_dir, 1, *words)
    assert job.finish() == [0], job.said()
    took(time.monotonic() - since, f"{len(HARMFUL) + 2} damaged checkpoints, and the whole run after them")
    for step in (98, 99, *range(INTACT + 1, INTACT + 1 + len(HARMFUL))):
        assert f"checkpoints/{step} fails verification; setting it aside as {step}.corrupt-1" in job.said()
    assert checksums(run_dir, STEPS) == checksums(tmp_path / "whole", STEPS)
    assert lines(run_dir) == lines(tmp_path / "whole")
    assert len(store(run_dir).set_aside()) == len(HARMFUL) + 2  # nothing is deleted


@pytest.mark.slow
def test_two_processes_go_back_to_the_same_checkpoint(runs, parent, whole, tmp_path):
    """One of them alone could see a damage."""
    run_dir = cut_back(whole, tmp_path / "run", 6)
    truncate(max((run_dir / "checkpoints/6/arrays").rglob("*"), key=lambda p: p.stat().st_size * p.is_file()))
    empty(run_dir / "checkpoints" / "4")
    job = Job(runs, parent, run_dir, 2, *WORDS)
    assert job.finish() == [0, 0], job.said_by_all
    assert store(run_dir).set_aside() == ["4.corrupt-1", "6.corrupt-1"]
    for name in store(run_dir).set_aside():
        shutil.rmtree(run_dir / "checkpoints" / name)
    compare(whole, run_dir, 8)


@pytest.mark.slow
def test_without_an_intact_checkpoint_all_processes_leave_with_81(runs, parent, whole, tmp_path):
    run_dir = cut_back(whole, tmp_path / "run", 4)
    for step in (2, 4):
        truncate(run_dir / "checkpoints" / str(step) / "meta/data.json")
    before = (run_dir / "metrics.jsonl").read_bytes()
    job = Job(runs, parent, run_dir, 2, *WORDS)
    assert job.finish() == [81, 81], job.said_by_all
    assert (run_dir / "metrics.jsonl").read_bytes() == before
