"""The record of how a run was started."""

import json
import re
import subprocess

import pytest

from train.starts import MAX_STARTS, commit_of, kept_starts, recorded_starts, start_record


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)


def test_a_start_has_time_host_command_and_code(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/launch/cli.py", "train", "x y.yaml", "run.steps=3"])
    found = start_record(7, {"run.steps": (5, 9)})
    assert (
        found["command"] == "maverick train 'x y.yaml' run.steps=3"
        and found["step"] == 7
        and found["changed"] == {"run.steps": [5, 9]}
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["time"])
    assert found["host"] and found["version"] and set(found) >= {"commit"}


def test_the_commit_is_that_of_a_checkout_and_says_if_files_differ(tmp_path):
    assert commit_of(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None  # nothing is committed
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub").mkdir()
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "x")
    whole = commit_of(tmp_path)
    assert whole is not None and re.fullmatch("[0-9a-f]{40}", whole)
    assert commit_of(tmp_path / "sub") is None  # installed inside someone else's repository
    (tmp_path / "untracked").touch()
    assert commit_of(tmp_path) == whole
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path) == whole + "+changes"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) is None


def test_the_first_and_the_newest_starts_are_kept():
    earlier = [{"step": i} for i in range(300)]
    kept = kept_starts(earlier, {"step": 300})
    assert len(kept) == MAX_STARTS and kept[0] == {"step": 0} and kept[-2:] == [{"step": 299}, {"step": 300}]
    for count in (0, 1, 5, MAX_STARTS - 1):
        assert kept_starts(earlier[:count], {"step": -1}) == [*earlier[:count], {"step": -1}]
    assert len(kept_starts(earlier[:MAX_STARTS], {"step": -1})) == MAX_STARTS


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"starts": 3}', "[" * 100_000, '{"starts": {"a": 1}}'])
def test_a_damaged_record_of_starts_is_begun_anew(tmp_path, text):
    path = tmp_path / "environment.json"
    assert recorded_starts(path) == []
    path.write_text(text)
    assert recorded_starts(path) == []
    path.write_text(json.dumps({"starts": [1]}))
    assert recorded_starts(path) == [1]
