"""Runs that copy their checkpoints to a server that speaks S3, are killed in the middle of copying, lose their disk,
and end as the run that was left alone."""

import json
import shutil
import signal

import pytest

from launch.cli import main
from maverick_jax.checkpoint.copies import RECORD, Copies, CopiesConfig
from maverick_jax.checkpoint.object_store import ObjectStore
from tests.helpers.object_server import BUCKET, object_server
from tests.helpers.small_run import checksums, finish, lines, log_of, wait_for
from tests.runs.test_toy_killed import records, result, start
from tests.train.faults.test_processes import finish_all, start_two

PLACE = f"s3://{BUCKET}/runs/toy"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with object_server(tmp_path_factory.mktemp("server")) as environment:
        yield environment


@pytest.fixture
def bucket(server, monkeypatch):
    """The server is in the environment of this process and of those that it starts."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)


def begun(place: str) -> dict[int, bool]:
    """Whether the copy of each step is complete."""
    found: dict[int, bool] = {}
    for key in ObjectStore(place).listed():
        step, _, name = key.partition("/")
        if step.isdigit():
            found[int(step)] = found.get(int(step), False) or name == RECORD
    return found


def kill_while_copying(process, place: str, past: int) -> None:
    """SIGKILL when what an earlier process left is gone, and part of a copy of a step after `past` is there."""
    wait_for(lambda: all(begun(place).values()), process)
    wait_for(lambda: any(not done and step > past for step, done in begun(place).items()), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_copies_and_loses_its_disk_ends_the_same(bucket, tmp_path):
    options = {"stop": 24, "every": 3, "size": 64, "delay": 0.1}
    assert finish(start(tmp_path / "whole", **options | {"delay": 0})) == 0
    run_dir, copies = tmp_path / "killed", Copies(CopiesConfig(to=PLACE))
    for lose_disk in (True, False, True):
        past = max(copies.steps(), default=3)
        kill_while_copying(start(run_dir, **options, copies=PLACE, slow_copy=0.05), PLACE, past)
        newest = max(copies.steps())
        assert copies.unfinished() and newest >= past
        if lose_disk:
            shutil.rmtree(run_dir / "checkpoints")
    assert finish(start(run_dir, **options, copies=PLACE)) == 0, (run_dir / "log").read_text()
    assert result(run_dir)["resumed_from"] == newest
    assert result(run_dir)["checksums"] == result(tmp_path / "whole")["checksums"]
    assert records(run_dir) == records(tmp_path / "whole")
    steps = copies.steps()
    assert steps[-1] == 24 and len(steps) <= 3 and copies.unfinished() == []
    assert all(copies.problems(step) == [] for step in steps)


@pytest.mark.slow
def test_two_processes_copy_and_one_goes_on_without_their_disk(tmp_path):
    """Process 0 copies, and fetches for all."""
    place, moved, whole = str(tmp_path / "place"), tmp_path / "moved", tmp_path / "whole"
    assert finish(start(whole, devices=8, stop=24)) == 0
    assert finish_all(start_two(moved, stop=8, copies=place)) == [0, 0], (moved / "log-0").read_text()
    shutil.rmtree(moved / "checkpoints")
    assert finish(start(moved, devices=8, stop=16, copies=place)) == 0, (moved / "log").read_text()
    assert result(moved)["resumed_from"] == 8
    shutil.rmtree(moved / "checkpoints")
    assert finish_all(start_two(moved, stop=24, copies=place)) == [0, 0], (moved / "log-0").read_text()
    assert result(moved)["resumed_from"] == 16
    assert result(moved)["checksums"] == result(whole)["checksums"]
    assert Copies(CopiesConfig(to=place)).steps()[-1] == 24


@pytest.mark.slow
def test_a_real_run_goes_on_elsewhere_from_its_copies(bucket, server, whole_run, runs, tmp_path, capsys):
    """Another directory, as on another machine, with nothing of the first but the config."""
    place = f"s3://{BUCKET}/runs/small"
    options = (f"checkpoint.copies={{to: {place}, keep: 2}}",)
    first = tmp_path / "first"
    process = runs.start(first, *options, **server)
    wait_for(lambda: len([step for step, done in begun(place).items() if done]) >= 2, process)
    process.kill()
    process.wait()
    newest = max(Copies(CopiesConfig(to=place)).steps())
    assert "is in use by" not in log_of(first)

    other = tmp_path / "other"
    said = runs.train(other, *options, **server)
    assert f"fetching checkpoint {newest} from {place}" in said
    assert checksums(other, 24) == checksums(whole_run, 24)
    assert lines(other) == [line for line in lines(whole_run) if line["step"] > newest]
    assert main(["doctor", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["copies"]["checkpoints"][-1]["step"] == found["restorable_step"] == 24
    for folder in (first, other):
        for path in (path for path in folder.rglob("*") if path.is_file()):
            assert b"canary" not in path.read_bytes(), path
    assert "canary" not in said + log_of(first)

    another = runs.train(tmp_path / "third", *options, "run.name=third", code=78, **server)
    assert "run.name: small at checkpoint.copies.to, third here" in another
