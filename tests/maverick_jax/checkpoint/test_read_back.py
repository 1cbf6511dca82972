"""Checkpoints are read back after they were written; a damaged one is found before an older one is deleted."""

import errno
import json
import time
import types

import pytest

from maverick_jax import events
from maverick_jax.checkpoint import contents, read_back
from maverick_jax.checkpoint.copies import Copies, CopiesConfig
from maverick_jax.checkpoint.read_back import Finishing, Reading
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from tests.maverick_jax.checkpoint.test_store import DAMAGE, mesh, target, values
from tests.maverick_jax.checkpoint.test_store import place as placed

__all__ = ["mesh"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture
def recorded(tmp_path):
    """The events so far, without times."""
    with events.recorded():
        events.record_to(tmp_path)

        def read():
            lines = (tmp_path / events.FILE).read_text().splitlines()
            return [{k: v for k, v in json.loads(line).items() if k not in ("time", "seconds")} for line in lines]

        yield read


def store_in(tmp_path, **more) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run", CheckpointConfig(keep=1, **more))


def save(store, mesh, *steps, wait=True):
    for step in steps:
        store.save(step, placed(values(step), mesh), {}, wait=wait)


def damage(monkeypatch, how: str, step: int) -> None:
    """A write that goes wrong: the checkpoint of `step` is damaged before it is read back."""
    monkeypatch.setattr(read_back, "_forget", lambda path: DAMAGE[how](path) if path.name == str(step) else None)


def test_an_intact_checkpoint_is_said_to_be(tmp_path, mesh, recorded, caplog):
    caplog.set_level("INFO")
    store = store_in(tmp_path)
    save(store, mesh, 1)
    size = sum(value.nbytes for value in values(1).values())
    assert recorded() == [{"event": "checkpoint_read_back", "step": 1, "bytes": size}]
    assert f"1 read back: intact ({size:,} bytes" in caplog.text
    store.close()


@pytest.mark.parametrize(
    "how", ["a bit of the data", "data cut off", "index gone", "metadata gone", "Orbax's index cut off"]
)
def test_a_checkpoint_damaged_while_it_is_written_is_set_aside_and_no_older_one_is_deleted(
    how, tmp_path, mesh, monkeypatch, recorded, caplog
):
    store = store_in(tmp_path, copies=CopiesConfig(to=str(tmp_path / "place"), keep=9))
    save(store, mesh, 1)
    damage(monkeypatch, how, 10)
    save(store, mesh, 10)
    assert store.steps() == [1] and store.set_aside() == ["10.corrupt-1"]
    assert "10 differs from what was saved" in caplog.text
    assert [line["event"] for line in recorded() if line["step"] == 10] == [
        "checkpoint_damaged",
        "checkpoint_set_aside",
    ]
    save(store, mesh, 11)
    assert store.steps() == [11] and store.verify(11) == []
    store.close()
    assert Copies(CopiesConfig(to=str(tmp_path / "place"))).steps() == [1, 11]


def test_damage_that_is_found_in_the_background_is_handled_by_the_next_save(tmp_path, mesh, monkeypatch):
    store = store_in(tmp_path)
    save(store, mesh, 1)
    damage(monkeypatch, "a bit of the data", 2)
    save(store, mesh, 2, wait=False)
    store._pending[1]._thread.join()
    assert store.steps() == [1, 2]
    save(store, mesh, 3)
    assert store.steps() == [3] and store.set_aside() == ["2.corrupt-1"]
    store.close()


def test_reading_ends_where_it_stands_when_the_next_save_begins(tmp_path, mesh, monkeypatch, recorded):
    def endless(path, names, on_block, orbax):
        while True:
            on_block(10)
            time.sleep(0.001)

    store = store_in(tmp_path)
    monkeypatch.setattr(contents, "problems", endless)
    save(store, mesh, 1, 2, wait=False)
    monkeypatch.undo()
    store.wait()
    found = [(line["event"], line["step"]) for line in recorded()]
    assert found[0] == ("checkpoint_read_in_part", 1) and recorded()[0]["bytes"] > 0
    assert store.steps() == [2]  # what was read is intact, so older ones are deleted as ever
    store.close()


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path, mesh, monkeypatch, caplog):
    def fail(*_, **more):
        raise OSError(errno.EIO, "input/output error")

    store = store_in(tmp_path)
    monkeypatch.setattr(contents, "problems", fail)
    save(store, mesh, 1)
    assert "1 could not be read back" in caplog.text and store.steps() == [1] and store.set_aside() == []
    monkeypatch.undo()
    assert store.restore(target(mesh))[0] == 1
    store.close()


def test_nothing_is_read_if_the_config_says_so(tmp_path, mesh, monkeypatch):
    place = str(tmp_path / "place")
    monkeypatch.setattr(contents, "problems", lambda *_, **more: pytest.fail("read"))
    store = store_in(tmp_path, read_back=False, copies=CopiesConfig(to=place))
    save(store, mesh, 1)
    store.close()
    assert store.steps() == [1] and Copies(CopiesConfig(to=place)).steps() == [1]


# ---- several processes -----------------------------------------------------------------------------------------------


class Saved:
    def result(self):
        return None


@pytest.fixture
def checkpoint(tmp_path, mesh):
    store = store_in(tmp_path)
    save(store, mesh, 1)
    store.close()
    return tmp_path / "run" / "1"


def process(monkeypatch, rank: int, count: int) -> None:
    """The module takes itself for process `rank` of `count`."""
    told = types.SimpleNamespace(process_index=lambda: rank, process_count=lambda: count)
    monkeypatch.setattr(read_back, "jax", told)


def finished(monkeypatch, checkpoint, rank: int, told: dict[str, str], count: int = 3) -> tuple[Reading, list[str]]:
    """The reading on process `rank`; the others have left `told` with the coordinator. And what `on_intact` did."""
    process(monkeypatch, rank, count)
    monkeypatch.setattr(read_back, "publish", lambda key, text: told.__setitem__(key.rpartition("/")[2], text))
    monkeypatch.setattr(read_back, "published", lambda topic: told)
    done: list[str] = []
    finishing = Finishing(Saved(), checkpoint, read=True, on_intact=lambda: done.append("intact"))
    finishing.saved()
    return finishing.reading(whole=True), done


def test_processes_read_shares_and_process_0_hears_of_all(checkpoint, monkeypatch):
    whole, told = sum(value.nbytes for value in values(1).values()), {}
    for rank in (1, 2):
        reading, done = finished(monkeypatch, checkpoint, rank, told)
        assert 0 < reading.read < whole and done == []
    reading, done = finished(monkeypatch, checkpoint, 0, told)
    assert reading == Reading((), whole, whole=True) and done == ["intact"]


def test_damage_in_another_process_share_reaches_process_0(checkpoint, monkeypatch):
    told = {
        str(rank): json.dumps({"problems": ["w: differs"] if rank == 2 else [], "read": 1, "whole": True})
        for rank in (1, 2)
    }
    reading, done = finished(monkeypatch, checkpoint, 0, told)
    assert reading.problems == ("w: differs",) and done == []


def test_a_process_that_tells_nothing_is_waited_for_until_the_next_save_and_no_longer(checkpoint, monkeypatch):
    monkeypatch.setattr(read_back, "PATIENCE", 0.0)
    process(monkeypatch, 0, 2)
    told: dict[str, str] = {}
    monkeypatch.setattr(read_back, "publish", lambda key, text: told.__setitem__("0", text))
    monkeypatch.setattr(read_back, "published", lambda topic: told)
    reading = Finishing(Saved(), checkpoint, read=True, on_intact=lambda: None).reading(whole=False)
    assert not reading.whole and not reading.problems


def test_a_process_of_several_does_not_use_orbax_alone(checkpoint, monkeypatch):
    """Orbax numbers its operations: a process that does one more than the others waits for them at its next barrier."""

    def used(*_):
        raise AssertionError("Orbax was used")

    monkeypatch.setattr(contents.ocp, "load_checkpointables", used)
    monkeypatch.setattr(Copies, "require_held", lambda self: None)
    told = {"1": json.dumps({"problems": [], "read": 1, "whole": True})}
    reading, done = finished(monkeypatch, checkpoint, 0, told, count=2)
    assert reading.whole and not reading.problems and done == ["intact"]
    copies = Copies(CopiesConfig(to=str(checkpoint.parent / "place")))
    copies.put(1, checkpoint)
    assert copies.steps() == [1]
