"""One writer a run: the second is refused, and a dead one keeps nothing, on a file system and in an object store."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_store import rows

from gradalign.store import RunFolder, load_run, status
from gradalign.store.lock import LeaseLock, lock_of
from gradalign.types import GradalignError

HOLD = """
import sys, time
from gradalign.store import RunFolder, session
folder = RunFolder(sys.argv[1])
with folder.held():
    folder.open({"seed": 0}, {"versions": {}})
    with session(folder.path, questions=8, parts=1, to_do=1):
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_by_name_until_the_first_is_dead(holder, tmp_path):
    second = RunFolder(tmp_path / "run")
    with pytest.raises(GradalignError, match=rf"another process \(process {holder.pid} on "), second.held():
        pass
    assert status(tmp_path / "run").state == "running"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert status(tmp_path / "run").state == "killed"
    with second.held():
        second.open({"seed": 0}, {"versions": {}})
        second.write(0, rows(0))
    assert len(load_run(tmp_path / "run").nodes) == 1


def test_two_that_begin_the_same_new_run_do_not_both_write_it(tmp_path):
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.held(), second.held():  # neither finds a run yet
        first.open({"seed": 0}, {"versions": {}})
        with pytest.raises(GradalignError, match="another process"):
            second.open({"seed": 0}, {"versions": {}})


def test_a_look_at_the_status_does_not_keep_the_lock(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
    lock = lock_of(tmp_path / "run")
    assert not lock.taken()
    assert lock.take()
    assert lock.taken()
    assert lock_of(tmp_path / "run").taken()
    lock.release()


def test_what_a_killed_writer_had_not_finished_is_swept_away(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
    left = tmp_path / "run" / ".partial" / "half"
    left.write_bytes(b"x")
    with folder.held():
        folder.open({"seed": 0}, {"versions": {}})
    assert not left.exists()


def test_a_lease_is_kept_while_it_is_renewed_and_not_after(tmp_path):
    first, second = LeaseLock(tmp_path, beat=0.1), LeaseLock(tmp_path, beat=0.1)
    assert first.take()
    assert not second.take()
    first.over.set()  # as if its process had died: nothing renews the lease, and nothing removes it
    first.thread.join()
    assert (tmp_path / "lease.json").exists()
    assert second.take()
    second.release()
    assert not (tmp_path / "lease.json").exists()


def test_a_lease_that_was_taken_over_stops_its_first_holder(tmp_path):
    first, second = LeaseLock(tmp_path, beat=0.1), LeaseLock(tmp_path, beat=0.1)
    assert first.take()
    second._write()
    until = time.monotonic() + 5
    while not first.lost and time.monotonic() < until:
        time.sleep(0.02)
    assert first.lost
    folder = RunFolder(tmp_path / "run")
    folder.lock = first
    with pytest.raises(GradalignError, match="taken over"):
        folder.write(0, rows(0))
    first.release()
    assert (tmp_path / "lease.json").exists()


def test_a_lease_that_cannot_be_read_for_a_while_is_not_taken_for_dead(tmp_path, monkeypatch):
    first, second = LeaseLock(tmp_path, beat=0.1), LeaseLock(tmp_path, beat=0.1)
    assert first.take()
    whole, failures = second._read, iter([True, False, True] + [False] * 1000)
    monkeypatch.setattr(second, "_read", lambda: None if next(failures) else whole())
    assert not second.take()
    monkeypatch.setattr(second, "_read", lambda: None)
    assert not second.take()
    first.release()


def test_a_lease_that_cannot_be_renewed_is_given_up(tmp_path, monkeypatch):
    lock = LeaseLock(tmp_path, beat=0.05)
    assert lock.take()

    def unreachable():
        raise RuntimeError("no connection")

    monkeypatch.setattr(lock, "_write", unreachable)
    until = time.monotonic() + 5
    while not lock.lost and time.monotonic() < until:
        time.sleep(0.02)
    assert lock.lost
    lock.release()


def test_a_lock_knows_no_clock(holder, tmp_path, monkeypatch):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 4e8)
    os.utime(tmp_path / "run" / ".lock", (0, 0))
    with pytest.raises(GradalignError, match="another process"), RunFolder(tmp_path / "run").held():
        pass
