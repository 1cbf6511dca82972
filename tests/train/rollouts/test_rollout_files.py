"""Files of episodes: trajectories that our readers accept, and rows that a run goes on from."""

import numpy as np
import pytest

from data.trajectories import read_trajectories
from maverick_jax.errors import InputError
from tests.helpers.scripted_engine import ScriptedEngine
from tests.train.rollouts.test_playing import BYTES, playing, solver
from train.rollouts import rollout_files


@pytest.fixture(scope="module")
def episodes():
    engine = ScriptedEngine(BYTES, solver)
    yield playing().play(engine, 0)
    engine.close()


def test_trajectories_are_read_again_with_their_tokens(episodes, tmp_path):
    rollout_files.write_episodes(tmp_path / "rollouts", 7, episodes, 4)
    (path,) = (tmp_path / "rollouts").iterdir()
    found = list(read_trajectories(str(path)))
    assert path.name == "set-000007.jsonl" and len(found) == len(episodes)
    for episode, trajectory in zip(episodes, found, strict=True):
        assert [s.message for s in trajectory.steps] == [s.message for s in episode.steps]
        assert trajectory.outcome == episode.outcome and trajectory.extra["tokens"] == episode.tokens
        written = np.zeros(len(episode.tokens), bool)
        for begin, end in trajectory.extra["written"]:
            written[begin:end] = True
        assert written.tolist() == episode.written
    assert found[5].provenance.id == "set-7-task-1-1"


def test_rows_come_back_and_old_ones_go(tmp_path):
    draw = np.random.default_rng(0)
    for number in range(12):
        rows = {"tokens": draw.integers(0, 9, (2, 4)).astype(np.int32), "returns": draw.random((2, 4), np.float32)}
        rollout_files.write_rows(tmp_path, number, rows)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"rows-{number:06d}.npz" for number in range(4, 12)]
    found = rollout_files.read_rows(tmp_path, 11, 30)
    assert found.keys() == rows.keys() and all((found[name] == rows[name]).all() for name in rows)
    rollout_files.write_rows(tmp_path, 9, rows)  # a run that went back
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"rows-{number:06d}.npz" for number in range(4, 10)]


def test_rows_that_a_checkpoint_needs_stay(tmp_path):
    rows = {"tokens": np.zeros((2, 4), np.int32)}
    for number in range(12):
        rollout_files.write_rows(tmp_path, number, rows, {1, 2, 30})
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"rows-{number:06d}.npz" for number in (1, 2, *range(4, 12))]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not an archive"])
def test_rows_that_cannot_be_read_say_so(tmp_path, content):
    if content is not None:
        (tmp_path / "rows-000003.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"rows-000003\.npz: cannot be read.*update 14 learns from"):
        rollout_files.read_rows(tmp_path, 3, 14)


def test_rows_with_code_in_them_are_refused(tmp_path):
    with (tmp_path / "rows-000001.npz").open("wb") as file:
        np.savez(file, tokens=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="ValueError"):
        rollout_files.read_rows(tmp_path, 1, 2)
