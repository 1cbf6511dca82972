"""The persistent tier of a store: what is copied when, and what a restore takes."""

import shutil
import threading

import pytest

from launch.doctor import doctor, render, require_healthy
from maverick_jax import events
from maverick_jax.checkpoint import copies as copies_module
from maverick_jax.checkpoint import lease
from maverick_jax.checkpoint.copier import CopyFailed
from maverick_jax.checkpoint.copies import Copies, CopiesConfig
from maverick_jax.checkpoint.object_store import ObjectStore, StoreUnreachable
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.errors import CheckFailed, InputError, NoRestorableCheckpoint, RunInUse
from maverick_jax.settings.strict_yaml import dump
from tests.maverick_jax.checkpoint.test_store import flip, largest, mesh, same, target, values
from tests.maverick_jax.checkpoint.test_store import place as placed

__all__ = ["mesh"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def config_of(place: str, **more) -> CheckpointConfig:
    return CheckpointConfig(copies=CopiesConfig(to=place, **more), keep=2)


def save(store: CheckpointStore, mesh, *steps: int) -> None:
    for step in steps:
        store.save(step, placed(values(step), mesh), {}, wait=True)
        if store._copier is not None:
            store._copier._join(None)


def copied(place: str) -> list[int]:
    return Copies(CopiesConfig(to=place)).steps()


def damage_copy(place: str, step: int) -> None:
    store = ObjectStore(place)
    key = max((k for k in store.listed(f"{step}/") if "/d/" in k), key=lambda k: len(store.read(k)))
    store.write(key, store.read(key)[:-1])


def test_checkpoints_are_copied_and_a_new_disk_begins_with_the_newest(place, tmp_path, mesh):
    store = CheckpointStore(tmp_path / "run", config_of(place, keep=2))
    save(store, mesh, 1, 2, 3)
    store.close()
    assert store.steps() == [2, 3] and copied(place) == [2, 3]
    assert lease.FILE not in ObjectStore(place).listed()

    elsewhere = CheckpointStore(tmp_path / "other", config_of(place))
    assert elsewhere.known_steps() == [2, 3] and elsewhere.meta(3)["step"] == 3
    step, arrays, _ = elsewhere.restore(target(mesh))
    assert step == 3 and same(arrays, values(3)) and elsewhere.steps() == [3]
    elsewhere.close()


def test_a_run_that_ends_has_copied_its_last_checkpoint_whatever_every_says(place, tmp_path, mesh):
    store = CheckpointStore(tmp_path, config_of(place, every=4, keep=9))
    save(store, mesh, 1, 2, 4, 5, 7)
    assert copied(place) == [1, 5]
    store.close()
    assert copied(place) == [1, 5, 7]


def test_the_newest_that_is_intact_wins_wherever_it_is(tmp_path, mesh, caplog):
    place, run = str(tmp_path / "place"), tmp_path / "run"
    store = CheckpointStore(run, config_of(place, keep=9))
    save(store, mesh, 1, 2, 3)
    store.close()

    flip(largest(run / "3", "arrays"))  # the copy of 3 is whole
    store = CheckpointStore(run, config_of(place, keep=9))
    step, arrays, _ = store.restore(target(mesh))
    assert step == 3 and same(arrays, values(3)) and store.set_aside() == ["3.corrupt-1"]

    flip(largest(run / "3", "arrays"))
    damage_copy(place, 3)  # neither; 2 is older, and here
    assert store.restore(target(mesh))[0] == 2
    assert "the copy of step 3 in" in caplog.text and "is damaged; skipping it" in caplog.text
    shutil.rmtree(run / "2")
    assert store.restore(target(mesh))[0] == 2  # fetched
    for step in (1, 2):
        damage_copy(place, step)
    shutil.rmtree(run / "2")
    with pytest.raises(NoRestorableCheckpoint, match=f"no checkpoint in {run} or {place} passes verification"):
        store.restore(target(mesh))
    store.close()


def test_an_older_copy_does_not_win_over_a_newer_checkpoint_here(tmp_path, mesh):
    place = str(tmp_path / "place")
    store = CheckpointStore(tmp_path / "run", config_of(place, every=100))
    save(store, mesh, 1, 2)
    assert copied(place) == [1] and store.restore(target(mesh))[0] == 2
    store.close()


def test_steps_that_are_rolled_back_lose_their_copies(tmp_path, mesh):
    place = str(tmp_path / "place")
    store = CheckpointStore(tmp_path / "run", config_of(place, keep=9))
    save(store, mesh, 1, 2, 3)
    store.delete_after(1)
    assert copied(place) == [1] and store.steps() == []
    assert store.restore(target(mesh))[0] == 1 and store.steps() == [1]
    store.save(2, placed(values(9), mesh), {}, wait=True)
    store.close()
    assert copied(place) == [1, 2]
    assert same(CheckpointStore(tmp_path / "new", config_of(place)).restore(target(mesh))[1], values(9))


def test_a_place_that_is_away_ends_no_run_and_is_tried_again(tmp_path, mesh, monkeypatch, caplog):
    place = str(tmp_path / "place")
    store = CheckpointStore(tmp_path / "run", config_of(place))
    save(store, mesh, 1)
    put = Copies.put

    def away(self, step, path):
        raise StoreUnreachable("it is away")

    monkeypatch.setattr(Copies, "put", away)
    with events.recorded():
        events.record_to(tmp_path)
        save(store, mesh, 2)
        assert "checkpoint 2 could not be copied: it is away" in caplog.text
        assert '"event": "copy_failed", "step": 2' in (tmp_path / events.FILE).read_text()
    with pytest.raises(CopyFailed, match="2 is saved, but not copied: it is away"):
        store.close()
    assert copied(place) == [1] and lease.FILE not in ObjectStore(place).listed()
    monkeypatch.setattr(Copies, "put", put)
    CheckpointStore(tmp_path / "run", config_of(place)).close()
    assert copied(place) == [1, 2]


def test_a_place_that_does_not_answer_is_an_error_before_anything_is_saved(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("maverick_jax.checkpoint.object_store._RETRIES", {"max_retries": 1})
    with pytest.raises(StoreUnreachable, match=bucket):
        CheckpointStore(tmp_path, config_of(bucket))


class Gate:
    """Lets `Copies.put` begin and go on when the test says so."""

    def __init__(self, monkeypatch):
        self.begun, self.go_on = threading.Event(), threading.Event()
        put = Copies.put

        def slow(copies, step, path):
            self.begun.set()
            assert self.go_on.wait(600)
            return put(copies, step, path)

        monkeypatch.setattr(Copies, "put", slow)


def test_a_slow_copy_holds_up_no_save_and_keeps_its_checkpoint(tmp_path, mesh, monkeypatch, caplog):
    gate, place = Gate(monkeypatch), str(tmp_path / "place")
    store = CheckpointStore(tmp_path / "run", config_of(place))
    for step in (1, 2, 3, 4):
        store.save(step, placed(values(step), mesh), {}, wait=True)
        assert gate.begun.wait(600)
    assert store.steps() == [1, 3, 4]  # 1 is beyond `keep`, and is being copied
    assert "checkpoint 4 is not copied: the copy of 1 is still going on" in caplog.text
    gate.go_on.set()
    store.close()
    assert copied(place) == [1, 4]


def test_a_run_that_is_asked_to_stop_waits_for_a_copy_as_long_as_its_config_says(tmp_path, mesh, monkeypatch, caplog):
    gate, place = Gate(monkeypatch), str(tmp_path / "place")
    store = CheckpointStore(tmp_path / "run", config_of(place, stop_seconds=0.01))
    store.save(1, placed(values(1), mesh), {})
    store.wait()
    store.hurry()
    store.close()
    assert "the copy of checkpoint 1 is given up" in caplog.text and copied(place) == [] and store.verify(1) == []
    gate.go_on.set()


def test_two_jobs_with_their_own_disks_do_not_share_a_place(place, tmp_path, mesh):
    there = lease.Holder.here(lease.time.time()).model_copy(update={"machine": "another", "host": "node9"})
    ObjectStore(place).write(lease.FILE, there.model_dump_json().encode())
    with pytest.raises(RunInUse, match=f"{place} is in use by .* on node9"):
        CheckpointStore(tmp_path, config_of(place))


def test_a_job_whose_place_was_taken_over_ends_by_the_save_after_its_next(tmp_path, mesh):
    place = str(tmp_path / "place")
    store = CheckpointStore(tmp_path / "run", config_of(place))
    save(store, mesh, 1)
    there = lease.Holder.here(lease.time.time()).model_copy(update={"token": "another"})
    ObjectStore(place).write(lease.FILE, there.model_dump_json().encode())
    with pytest.raises(RunInUse, match="another job has taken over"):
        save(store, mesh, 2, 3)  # the copy of 2 finds it, at times before the save of 2 ends
    assert copied(place) == [1] and store.steps() == [1, 2]
    with pytest.raises(RunInUse, match="another job has taken over"):
        store.close()


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_says_everything_of_both_places_and_changes_neither(place, tmp_path, mesh):
    run = tmp_path / "run"
    store = CheckpointStore(run / "checkpoints", config_of(place, keep=9))
    save(store, mesh, 1, 2, 3)
    store.close()
    (run / "config.yaml").write_text(dump({"checkpoint": {"copies": {"to": place}}}))
    found = doctor(run)
    assert found["restorable_step"] == 3 and [one["step"] for one in found["copies"]["checkpoints"]] == [1, 2, 3]
    require_healthy(found)

    flip(largest(run / "checkpoints" / "3", "arrays"))
    damage_copy(place, 2)
    ObjectStore(place).delete(f"1/{copies_module.RECORD}")
    before = ObjectStore(place).listed()
    found = doctor(run)
    said = render(found)
    assert found["restorable_step"] == 3 and found["copies"]["unfinished"] == [1]
    assert f"{place}: step 2: DAMAGED" in said and f"{place}: step 3: intact" in said
    assert f"{place}: step 1: not finished; it is no copy" in said
    assert said.endswith(f"the run can resume from step 3, of the copy in {place}")
    with pytest.raises(CheckFailed, match=r"damaged checkpoints of steps \[3\]; damaged copies of steps \[2\]"):
        require_healthy(found)
    assert ObjectStore(place).listed() == before and store.steps() == [2, 3]


def test_doctor_of_a_run_whose_disk_is_new(tmp_path, mesh):
    place, run = str(tmp_path / "place"), tmp_path / "run"
    store = CheckpointStore(run / "checkpoints", config_of(place))
    save(store, mesh, 1)
    store.close()
    shutil.rmtree(run)
    run.mkdir()
    with pytest.raises(InputError, match="holds none"):
        doctor(run)
    (run / "config.yaml").write_text(dump({"checkpoint": {"copies": {"to": place}}}))
    assert doctor(run)["restorable_step"] == 1


def test_doctor_says_that_a_place_cannot_be_read(tmp_path, mesh):
    run = tmp_path / "run"
    store = CheckpointStore(run / "checkpoints")
    save(store, mesh, 1)
    store.close()
    (run / "config.yaml").write_text(dump({"checkpoint": {"copies": {"to": "s3://a"}}}))
    with pytest.raises(InputError, match=r"checkpoint\.copies"):
        doctor(run)
