"""Copies of checkpoints: complete or absent, verified when they are fetched, and kept by a rule of their own."""

import json
import shutil

import pytest

from maverick_jax.checkpoint import contents, copies, object_store
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.checkpoint.copies import RECORD, Copies, CopiesConfig, too_old
from maverick_jax.checkpoint.object_store import ObjectStore, StoreUnreachable
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.sharding import make_mesh
from tests.helpers import small_run
from tests.maverick_jax.checkpoint.test_store import place as placed
from tests.maverick_jax.checkpoint.test_store import values

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]
STEPS = (2, 4, 6, 8, 10, 12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of STEPS."""
    directory, mesh = tmp_path_factory.mktemp("saved"), make_mesh({"data": 2, "expert": 4})
    store = CheckpointStore(directory, CheckpointConfig(keep=99))
    for step in STEPS:
        store.save(step, placed(values(step), mesh), {"data": "abc"})
    store.close()
    return directory


@pytest.fixture
def held(place):
    """Copies at an empty place, which are given back."""
    found = Copies(CopiesConfig(to=place, keep=2, keep_every=6))
    yield found
    found.release()


def test_a_copy_is_fetched_as_it_was(held, saved, tmp_path):
    size = held.put(6, saved / "6")
    assert size == sum(path.stat().st_size for path in (saved / "6").rglob("*") if path.is_file()) == held.size(6)
    assert held.steps() == [6] and held.problems(6) == []
    assert held.meta(6) == contents.read_meta(saved / "6")
    held.fetch(6, tmp_path / "6")
    assert small_run.contents(tmp_path / "6") == small_run.contents(saved / "6")
    assert contents.problems(tmp_path / "6") == []


def test_copies_beyond_those_to_keep_are_deleted(held, saved):
    for step in STEPS:
        held.put(step, saved / str(step))
        held.tidy()
        assert len(held.steps()) >= min(2, STEPS.index(step) + 1)
    assert held.steps() == [6, 10, 12]
    held.delete_after(6)
    assert held.steps() == [6] and held.unfinished() == []


@pytest.mark.parametrize(
    ("every", "kept", "old"), [(None, (), [1, 2, 3, 4]), (2, (), [1, 3]), (None, (1, 3, 9), [2, 4])]
)
def test_what_is_too_old(every, kept, old):
    assert too_old([1, 2, 3, 4, 5, 6], CheckpointConfig(keep=2, keep_every=every), kept) == old
    assert too_old([1, 2], CheckpointConfig(keep=2), kept) == []


def test_a_copy_without_its_record_is_none_and_is_removed(held, saved):
    held.put(2, saved / "2")
    held.put(4, saved / "4")
    ObjectStore(held.place).delete(f"4/{RECORD}")
    assert held.steps() == [2] and held.unfinished() == [4]
    held.tidy()
    assert held.steps() == [2] and held.unfinished() == []


def test_objects_that_are_no_copies_are_left_alone(held, saved):
    for key in ("notes", "x/1", "01/a", "5.corrupt-1/a"):
        ObjectStore(held.place).write(key, b"mine")
    held.put(2, saved / "2")
    held.tidy()
    held.delete_after(0)
    listed = ObjectStore(held.place).listed()
    assert set(listed) >= {"notes", "x/1", "01/a", "5.corrupt-1/a"} and held.steps() == []


def test_copying_again_sends_nothing_unless_the_contents_differ(held, saved, tmp_path, monkeypatch):
    held.put(2, saved / "2")
    sent = []
    write = ObjectStore.write
    monkeypatch.setattr(ObjectStore, "write", lambda self, key, value: sent.append(key) or write(self, key, value))
    held.put(2, saved / "2")
    assert sent == []
    other = shutil.copytree(saved / "2", tmp_path / "other" / "2")
    meta = json.loads((other / "meta/data.json").read_text())
    meta["data"] = "xyz"
    meta["digest"] = contents._digest({key: value for key, value in meta.items() if key != "digest"})
    (other / "meta/data.json").write_text(json.dumps(meta))
    held.put(2, other)
    assert sent[-1] == f"2/{RECORD}" and held.meta(2)["data"] == "xyz"


def flipped(raw: bytes) -> bytes:
    return raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 4]) + raw[len(raw) // 2 + 1 :]


DAMAGE = {
    "a bit": lambda store, key: store.write(key, flipped(store.read(key))),
    "cut off": lambda store, key: store.write(key, store.read(key)[:-1]),
    "gone": lambda store, key: store.delete(key),
    "empty": lambda store, key: store.write(key, b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_named_and_never_fetched(damage, held, saved, tmp_path):
    held.put(2, saved / "2")
    store = ObjectStore(held.place)
    key = max((key for key in store.listed("2/") if key != f"2/{RECORD}"), key=lambda key: len(store.read(key)))
    DAMAGE[damage](store, key)
    (problem,) = held.problems(2)
    expected = "is gone" if damage == "gone" else "differs from what was copied"
    assert problem == f"{key.removeprefix('2/')}: {expected}"
    with pytest.raises(Damaged, match=expected):
        held.fetch(2, tmp_path / "2")
    assert not (tmp_path / "2").exists()


RECORDS = {
    "no JSON": "{",
    "another kind": "[]",
    "a key too many": '{"format": 1, "files": {}, "metadata": {}, "more": 1}',
    "a path that leaves": '{"format": 1, "files": {"../../x": [1, "%s"]}, "metadata": {}}' % ("0" * 64),
    "an absolute path": '{"format": 1, "files": {"/x": [1, "%s"]}, "metadata": {}}' % ("0" * 64),
    "a negative size": '{"format": 1, "files": {"x": [-1, "%s"]}, "metadata": {}}' % ("0" * 64),
    "no digest": '{"format": 1, "files": {"x": [1, ""]}, "metadata": {}}',
    "a later format": '{"format": 2, "files": {}, "metadata": {}}',
    "nested": '{"format": 1, "files": {}, "metadata": %s}' % ("[" * 10**5),
}


@pytest.mark.parametrize("record", RECORDS)
def test_a_hostile_record_is_damage(record, tmp_path):
    found = Copies(CopiesConfig(to=str(tmp_path / "place")))
    ObjectStore(found.place).write(f"3/{RECORD}", RECORDS[record].encode())
    assert found.steps() == [3]
    (problem,) = found.problems(3)
    assert problem.startswith(RECORD)
    with pytest.raises(Damaged):
        found.fetch(3, tmp_path / "3")
    with pytest.raises(Damaged):
        found.meta(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place"]


def test_metadata_that_were_changed_are_damage(held, saved):
    held.put(2, saved / "2")
    store = ObjectStore(held.place)
    store.write(f"2/{RECORD}", store.read(f"2/{RECORD}").replace(b'"data": "abc"', b'"data": "abd"'))
    assert held.problems(2) == ["its metadata differs from what was saved"]


def test_a_copy_for_which_there_is_no_room_is_not_begun(held, saved, tmp_path, monkeypatch):
    held.put(2, saved / "2")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match=r"step 2 needs [\d,]+ bytes; the disk of .* has 1 free. Nothing was changed"):
        held.fetch(2, tmp_path / "2")


def test_a_file_too_large_for_an_object_is_refused(held, saved, monkeypatch):
    monkeypatch.setattr(copies, "MAX_OBJECT", 100)
    with pytest.raises(InputError, match=r"[\d,]+ bytes; one object holds at most 100"):
        held.put(2, saved / "2")
    assert held.steps() == []


def test_a_place_that_fails_in_the_middle_has_no_copy(held, saved, monkeypatch):
    write = ObjectStore.write

    def failing(self, key, value):
        if key.endswith("_METADATA"):
            raise StoreUnreachable("away")
        write(self, key, value)

    monkeypatch.setattr(object_store.ObjectStore, "write", failing)
    with pytest.raises(StoreUnreachable):
        held.put(2, saved / "2")
    assert held.steps() == [] and held.unfinished() == [2]
    monkeypatch.undo()
