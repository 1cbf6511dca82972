"""Leases on places of copies, with a clock of the test."""

import pytest

from maverick_jax.checkpoint import object_lease
from maverick_jax.checkpoint.lease import FILE, STALE, Clock, Holder
from maverick_jax.checkpoint.object_store import ObjectStore
from maverick_jax.errors import RunInUse

NOW = 1_000_000.0


def clock(now: float = NOW) -> Clock:
    return Clock(lambda: now, lambda seconds: None)


def elsewhere(store: ObjectStore, beat: float) -> Holder:
    """The lease of a process on another machine."""
    there = Holder.here(beat).model_copy(update={"machine": "another", "host": "node9", "pid": 7})
    store.write(FILE, there.model_dump_json().encode())
    return there


def test_stores_of_a_process_share_a_lease_and_the_last_gives_it_back(place):
    store = ObjectStore(place)
    one, other = object_lease.take(store, clock()), object_lease.take(ObjectStore(place), clock())
    assert one is other and Holder.model_validate_json(store.read(FILE)).token == one.holder.token
    one.release()
    one.require_held()
    assert store.read(FILE) is not None
    other.release()
    assert store.read(FILE) is None


def test_a_job_elsewhere_keeps_its_lease_until_it_is_silent_for_long(place):
    store = ObjectStore(place)
    elsewhere(store, NOW - STALE)
    with pytest.raises(RunInUse, match=r"in use by process 7 on node9.*last sign of life 120 s ago"):
        object_lease.take(store, clock())
    lease = object_lease.take(store, clock(NOW + 1))
    assert Holder.model_validate_json(store.read(FILE)).token == lease.holder.token
    lease.release()


def test_a_process_of_this_machine_that_has_ended_has_no_lease(place):
    store = ObjectStore(place)
    dead = Holder.here(NOW).model_copy(update={"pid": 2**22 + 1})
    store.write(FILE, dead.model_dump_json().encode())
    lease = object_lease.take(store, clock())
    assert Holder.model_validate_json(store.read(FILE)).token == lease.holder.token
    lease.release()


def test_who_loses_a_lease_is_told_and_leaves_it_alone(place):
    store = ObjectStore(place)
    lease = object_lease.take(store, clock())
    there = elsewhere(store, NOW)
    with pytest.raises(RunInUse, match=r"another job has taken over \(process 7 on node9"):
        lease.require_held()
    lease.release()
    assert Holder.model_validate_json(store.read(FILE)).token == there.token


def test_of_two_writers_at_one_instant_one_gives_way(bucket):
    """S3 has no write that only one of them can win, so who wrote looks again."""
    store = ObjectStore(bucket)
    with pytest.raises(RunInUse, match="another job has taken over"):
        object_lease.take(store, Clock(lambda: NOW, lambda seconds: elsewhere(store, NOW) and None))


def test_a_lease_that_cannot_be_read_is_nobodys(place):
    store = ObjectStore(place)
    store.write(FILE, b"{")
    lease = object_lease.take(store, clock())
    assert Holder.model_validate_json(store.read(FILE)).token == lease.holder.token
    lease.release()
