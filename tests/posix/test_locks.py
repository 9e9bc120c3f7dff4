"""flock and fcntl locks, between processes of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

import pytest

from tests.posix.calls import fails_with, make, opened
from tests.posix.places import Place
from tests.posix.processes import Process

F_OFD_SETLK, F_OFD_GETLK = 37, 36
_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
BUSY = (errno.EAGAIN, errno.EACCES)


def _try_flock(path: Path, how: int) -> bool:
    """Whether another process gets the lock now."""

    def attempt() -> bool:
        with opened(path, os.O_RDWR) as fd:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    return bool(Process(attempt).result())


def _try_lockf(path: Path, how: int, length: int = 0, start: int = 0) -> bool:
    """The same for a lock of fcntl(2)."""

    def attempt() -> bool:
        with opened(path, os.O_RDWR) as fd:
            try:
                fcntl.lockf(fd, how | fcntl.LOCK_NB, length, start)
            except OSError as exc:
                if exc.errno not in BUSY:
                    raise
                return False
            return True

    return bool(Process(attempt).result())


def test_flock_exclusive(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not _try_flock(place / "file", fcntl.LOCK_EX)
        assert not _try_flock(place / "file", fcntl.LOCK_SH)
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert _try_flock(place / "file", fcntl.LOCK_EX)


def test_flock_shared(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert _try_flock(place / "file", fcntl.LOCK_SH)
        assert not _try_flock(place / "file", fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not _try_flock(place / "file", fcntl.LOCK_SH)


def test_flock_belongs_to_the_open(place: Place) -> None:
    """Another open of the same process is another; a duplicate is the same, and the last close lets go."""
    make(place / "file")
    with opened(place / "file") as one, opened(place / "file") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails_with(errno.EWOULDBLOCK):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy = os.dup(one)
        fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(one)
        assert not _try_flock(place / "file", fcntl.LOCK_EX)
        os.close(copy)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_of_a_directory(place: Place) -> None:
    with opened(place) as one, opened(place) as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails_with(errno.EWOULDBLOCK):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf], ids=["flock", "fcntl"])
def test_a_lock_is_waited_for(place: Place, lock) -> None:
    make(place / "file", b"before")

    def wait_for_it() -> bytes:
        with opened(place / "file", os.O_RDWR) as fd:
            lock(fd, fcntl.LOCK_EX)
            return os.pread(fd, 10, 0)

    with opened(place / "file", os.O_RDWR) as fd:
        lock(fd, fcntl.LOCK_EX)
        waiting = Process(wait_for_it)
        time.sleep(0.1)
        os.pwrite(fd, b"after!", 0)
        lock(fd, fcntl.LOCK_UN)
        assert waiting.result() == b"after!"


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf], ids=["flock", "fcntl"])
def test_a_process_that_dies_lets_go(place: Place, lock) -> None:
    make(place / "file")
    ready, tell = os.pipe()

    def hold() -> None:
        fd = os.open(place / "file", os.O_RDWR)
        lock(fd, fcntl.LOCK_EX)
        os.write(tell, b"x")
        time.sleep(60)

    attempt = _try_flock if lock is fcntl.flock else _try_lockf
    holder = Process(hold)
    os.read(ready, 1)
    assert not attempt(place / "file", fcntl.LOCK_EX)
    holder.kill()
    os.waitpid(holder.pid, 0)
    assert attempt(place / "file", fcntl.LOCK_EX)


def test_fcntl_ranges(place: Place) -> None:
    make(place / "file", bytes(1000))
    with opened(place / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 100, 200)
        assert _try_lockf(place / "file", fcntl.LOCK_EX, 200, 0)
        assert _try_lockf(place / "file", fcntl.LOCK_EX, 0, 300)
        assert not _try_lockf(place / "file", fcntl.LOCK_EX, 1, 299)
        assert not _try_lockf(place / "file", fcntl.LOCK_SH, 0, 0)
        fcntl.lockf(fd, fcntl.LOCK_UN, 50, 200)
        assert _try_lockf(place / "file", fcntl.LOCK_EX, 50, 200)
        assert not _try_lockf(place / "file", fcntl.LOCK_EX, 50, 250)


def test_fcntl_shared(place: Place) -> None:
    make(place / "file")
    with opened(place / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_SH)
        assert _try_lockf(place / "file", fcntl.LOCK_SH)
        assert not _try_lockf(place / "file", fcntl.LOCK_EX)


def test_fcntl_tells_who_holds_it(place: Place) -> None:
    make(place / "file")

    def ask() -> tuple[int, int, int]:
        with opened(place / "file", os.O_RDWR) as fd:
            question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, question))
            return (kind, start, length) if pid == os.getppid() else (-1, -1, pid)

    with opened(place / "file", os.O_RDWR) as fd:
        assert Process(ask).result()[0] == -1  # l_type is F_UNLCK; l_pid is not set
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
        assert Process(ask).result() == (fcntl.F_WRLCK, 5, 10)


def test_fcntl_locks_go_with_any_close(place: Place) -> None:
    make(place / "file")
    with opened(place / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        with opened(place / "file"):
            pass
        assert _try_lockf(place / "file", fcntl.LOCK_EX)


def test_fcntl_needs_the_mode(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd, fails_with(errno.EBADF):
        fcntl.lockf(fd, fcntl.LOCK_EX)
    with opened(place / "file", os.O_WRONLY) as fd, fails_with(errno.EBADF):
        fcntl.lockf(fd, fcntl.LOCK_SH)


def test_locks_of_open_file_descriptions(place: Place) -> None:
    make(place / "file")
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with opened(place / "file", os.O_RDWR) as one, opened(place / "file", os.O_RDWR) as two:
        fcntl.fcntl(one, F_OFD_SETLK, wanted)
        with fails_with(*BUSY):
            fcntl.fcntl(two, F_OFD_SETLK, wanted)
        assert not _try_lockf(place / "file", fcntl.LOCK_EX)
        os.close(one)
        fcntl.fcntl(two, F_OFD_SETLK, wanted)


def test_a_deadlock_is_refused(place: Place) -> None:
    """To one of the two: to whom depends on who asks last."""
    make(place / "file")
    ready, tell = os.pipe()

    def refused(fd: int, byte: int) -> bool:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, byte)
        except OSError as exc:
            if exc.errno != errno.EDEADLK:
                raise
            return True
        return False

    def second_then_first() -> bool:
        with opened(place / "file", os.O_RDWR) as fd:
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
            os.write(tell, b"x")
            return refused(fd, 0)

    with opened(place / "file", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
        other = Process(second_then_first)
        os.read(ready, 1)
        ours = refused(fd, 1)
        fcntl.lockf(fd, fcntl.LOCK_UN)
        assert ours != other.result()


def test_a_lock_stays_with_a_file_renamed_or_removed(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.rename(place / "file", place / "renamed")
        assert not _try_flock(place / "renamed", fcntl.LOCK_EX)
        make(place / "file")
        assert _try_flock(place / "file", fcntl.LOCK_EX)
        os.unlink(place / "renamed")
        os.rename(place / "file", place / "renamed")
        assert _try_flock(place / "renamed", fcntl.LOCK_EX)


def test_a_counter_that_processes_share(place: Place) -> None:
    make(place / "file", b"0")

    def count() -> None:
        for _ in range(25):
            with opened(place / "file", os.O_RDWR) as fd:
                fcntl.lockf(fd, fcntl.LOCK_EX)
                value = int(os.pread(fd, 20, 0)) + 1
                os.pwrite(fd, b"%d" % value, 0)

    for worker in [Process(count) for _ in range(4)]:
        worker.result()
    assert int((place / "file").read_bytes()) == 100
