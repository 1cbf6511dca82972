"""Leases: one job at a time, what is taken over and what is not, and that they are given back."""

import contextlib
import errno
import gc
import os
import subprocess
import sys
import threading

import pytest

from maverick_jax.checkpoint import lease
from maverick_jax.checkpoint.lease import BEAT, FILE, STALE, WATCH, Clock, Holder, claimed, holder_of, take
from maverick_jax.errors import InputError, RunInUse
from maverick_jax.process_identity import started
from tests.helpers.lease_holder import REPOSITORY, other_process


class FakeClock:
    """Seconds that pass only when somebody waits; `meanwhile` is called during a wait."""

    def __init__(self, meanwhile=lambda: None):
        self.time, self.meanwhile = 1e9, meanwhile

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.time += seconds
        self.meanwhile()


def elsewhere(directory, **changes) -> Holder:
    """Writes the lease of a process on another machine."""
    holder = Holder.here(1e9).model_copy(update={"host": "node7", "machine": "another", "job": "42", **changes})
    (directory / FILE).write_text(holder.model_dump_json())
    return holder


def test_a_lease_names_its_holder_and_is_gone_after_its_release(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    held = take(tmp_path / "run" / "checkpoints")
    found = holder_of(tmp_path / "run" / "checkpoints")
    assert found == held.holder and (found.pid, found.job) == (os.getpid(), "77")
    held.release()
    held.release()
    assert list(tmp_path.iterdir()) == []  # the folders that were made for it are gone too


def test_folders_that_hold_something_stay(tmp_path):
    held = take(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.jsonl").touch()
    held.release()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_lease_that_is_collected_is_given_back(tmp_path):
    take(tmp_path)
    gc.collect()
    assert holder_of(tmp_path) is None


def test_the_leases_of_a_process_are_one(tmp_path):
    first, second = take(tmp_path), take(tmp_path)
    assert first.holder == second.holder
    first.release()
    assert holder_of(tmp_path) is not None
    second.release()
    assert holder_of(tmp_path) is None


def test_a_directory_is_claimed_once_in_a_process(tmp_path):
    with claimed(tmp_path), pytest.raises(RunInUse, match="in use by this process"), claimed(tmp_path):
        pytest.fail("claimed twice")
    with claimed(tmp_path):
        take(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_claim_ends_with_its_block_however_it_ends(error, tmp_path):
    with pytest.raises(error), claimed(tmp_path):
        raise error
    assert holder_of(tmp_path) is None


# ---- other jobs ------------------------------------------------------------------------------------------------------


def test_a_living_process_is_named_in_one_line_and_nothing_changes(tmp_path):
    with other_process(tmp_path) as other:
        before = (tmp_path / FILE).read_bytes()
        with pytest.raises(RunInUse) as error:
            take(tmp_path, clock=Clock(lambda: 1e11))  # however long ago its last sign of life is
        message = str(error.value)
        assert f"{tmp_path} is in use by process {other.pid} on " in message and "\n" not in message
        assert (tmp_path / FILE).read_bytes() == before and error.value.exit_code == 75


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path, caplog):
    with other_process(tmp_path) as other:
        pass
    clock = FakeClock(meanwhile=lambda: pytest.fail("waited"))
    held = take(tmp_path, clock=clock.clock)
    assert holder_of(tmp_path) == held.holder
    assert f"taking over {tmp_path} from process {other.pid}" in caplog.text and "has ended" in caplog.text


def test_a_process_number_that_was_given_again_is_another_process(tmp_path):
    here = Holder.here(1e9)
    assert here.started is not None
    (tmp_path / FILE).write_text(here.model_copy(update={"started": here.started - 1}).model_dump_json())
    take(tmp_path)


def test_a_process_that_nobody_has_waited_for_yet_has_ended(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = Holder.here(1e9).model_copy(update={"pid": child.pid, "started": started(child.pid)})
    assert holder.has_ended is False
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert holder.has_ended is True
    child.communicate()


def test_another_machine_is_believed_as_long_as_it_gives_signs_of_life(tmp_path):
    clock = FakeClock(meanwhile=lambda: pytest.fail("waited"))
    for age in (0, BEAT, STALE, -1000):
        elsewhere(tmp_path, beat=clock.time - age)
        with pytest.raises(RunInUse, match=r"process \d+ on node7, job 42, since .* \(last sign of life \d+ s ago\)"):
            take(tmp_path, clock=clock.clock)


def test_a_silent_machine_is_watched_and_then_taken_over(tmp_path, caplog):
    clock = FakeClock()
    elsewhere(tmp_path, beat=clock.time - STALE - 1)
    held = take(tmp_path, clock=clock.clock)
    assert clock.time == 1e9 + WATCH and holder_of(tmp_path) == held.holder
    assert "on node7, job 42" in caplog.text and "no sign of life for 146 s" in caplog.text


def test_a_machine_whose_clock_is_late_is_not_taken_for_dead(tmp_path):
    beats = iter(range(1, 9))
    token = {"token": "t", "since": 1.0}
    clock = FakeClock(meanwhile=lambda: elsewhere(tmp_path, beat=float(next(beats)), **token))
    elsewhere(tmp_path, beat=0.0, **token)
    with pytest.raises(RunInUse, match="node7"):
        take(tmp_path, clock=clock.clock)


@pytest.mark.parametrize("content", [b"", b"{", b'{"host": "x"}', b"\xff\xfe"])
def test_a_file_that_is_no_lease_counts_by_its_age(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    clock = FakeClock()
    os.utime(tmp_path / FILE, (clock.time, clock.time))
    with pytest.raises(RunInUse, match="cannot be read"):
        take(tmp_path, clock=clock.clock)
    clock.time += STALE + 1
    assert take(tmp_path, clock=clock.clock).holder == holder_of(tmp_path)


def test_files_that_killed_writers_left_are_removed_when_they_are_old(tmp_path):
    for name, age in (("old", STALE + 1), ("young", 1)):
        (tmp_path / f"{FILE}.{name}").touch()
        os.utime(tmp_path / f"{FILE}.{name}", (1e9 - age, 1e9 - age))
    held = take(tmp_path, clock=FakeClock().clock)
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE, f"{FILE}.young"]
    held.release()


def test_names_in_a_lease_cannot_control_a_terminal(tmp_path):
    elsewhere(tmp_path, host="\x1b]0;x\x07")
    with pytest.raises(RunInUse) as error:
        take(tmp_path, clock=FakeClock().clock)
    assert "\x1b" not in str(error.value)


# ---- losing a lease --------------------------------------------------------------------------------------------------


def test_who_loses_a_lease_stops_and_leaves_the_file_of_the_other(tmp_path, caplog):
    held = take(tmp_path)
    held.require_held()
    other = elsewhere(tmp_path)
    with pytest.raises(RunInUse, match=r"another job has taken over \(process \d+ on node7, job 42"):
        held.require_held()
    held._held.renew()
    held.release()
    assert holder_of(tmp_path) == other and "another job has taken over" in caplog.text


def test_a_lease_can_be_stolen_from_a_living_job(tmp_path, caplog):
    elsewhere(tmp_path, beat=1e9)
    held = take(tmp_path, steal=True, clock=FakeClock().clock)
    assert holder_of(tmp_path) == held.holder and "node7, job 42" in caplog.text and "as asked" in caplog.text


def test_a_sign_of_life_renews_the_file(tmp_path):
    clock = FakeClock()
    held = take(tmp_path, clock=clock.clock)
    clock.time += BEAT
    held._held.renew()
    found = holder_of(tmp_path)
    assert (found.since, found.beat, found.token) == (1e9, 1e9 + BEAT, held.holder.token)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_lease_that_somebody_deleted_is_written_again(tmp_path):
    held = take(tmp_path)
    (tmp_path / FILE).unlink()
    held.require_held()
    assert holder_of(tmp_path) == held.holder


def test_a_file_system_that_is_away_does_not_end_the_signs_of_life(tmp_path, monkeypatch):
    held = take(tmp_path)

    def fail(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(lease, "_write", fail)
    held._held.renew()
    monkeypatch.undo()
    held._held.renew()
    held.require_held()


def test_of_many_that_take_over_one_gets_the_lease(tmp_path, monkeypatch):
    """Each of the threads plays a process of its own: it has its own table of leases."""
    elsewhere(tmp_path, beat=0.0)
    path, winners, barrier = tmp_path / FILE, [], threading.Barrier(8)
    monkeypatch.setattr(lease._Held, "start", lambda held: winners.append(held))

    def contend() -> None:
        barrier.wait()
        with contextlib.suppress(RunInUse):
            lease._acquire(path, False, FakeClock().clock)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = holder_of(tmp_path)
    assert [held.holder for held in winners if held.holder.token == there.token] == [there]


# ---- file systems and processes --------------------------------------------------------------------------------------


def test_a_file_system_without_hard_links_works_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(lease.os, "link", no_links)
    held = take(tmp_path)
    assert holder_of(tmp_path) == held.holder and [p.name for p in tmp_path.iterdir()] == [FILE]
    elsewhere(tmp_path)
    with pytest.raises(RunInUse):
        take(tmp_path / "." / "", clock=FakeClock().clock) if held.require_held() else None


def test_a_directory_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        take(tmp_path / "file" / "checkpoints")


def test_the_thread_that_renews_does_not_keep_a_process_alive_and_an_ordinary_end_gives_the_lease_back(tmp_path):
    code = f"from maverick_jax.checkpoint.lease import take; lease = take({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=900)
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []


def test_a_process_that_leaves_at_once_gives_its_leases_back(tmp_path):
    code = (
        "import os; from maverick_jax.checkpoint import lease\n"
        f"held = lease.take({str(tmp_path)!r}); lease.release_all(); os._exit(77)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=900)
    assert done.returncode == 77 and list(tmp_path.iterdir()) == []


def test_a_fork_of_the_holder_does_not_give_its_lease_back(tmp_path):
    held = take(tmp_path)
    lease._release(_of_parent(held._held), False)
    assert holder_of(tmp_path) == held.holder


def _of_parent(held):
    parent = held.holder.model_copy(update={"pid": held.holder.pid + 1})
    return lease._Held(held.path, parent, held.clock, [], count=1)
