"""Copies that the kernel makes: copy_file_range, sendfile, splice; and the durability calls."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import threading

import pytest

from tests.posix.calls import (
    MIB,
    fails_with,
    make,
    opened,
    pattern,
    read,
    sync_file_range,
    syncfs,
    tick,
    unless_refused,
    write_all,
)
from tests.posix.places import Place
from tests.posix.processes import LIMIT_S

RDWR = os.O_CREAT | os.O_RDWR
DATA = pattern(2 * MIB + 777)
FICLONE = 0x40049409


def _copy_range(source: int, target: int, count: int, source_at: int, target_at: int) -> int:
    done = 0
    while done < count:
        step = os.copy_file_range(source, target, count - done, source_at + done, target_at + done)
        if step == 0:
            break
        done += step
    return done


def test_copy_file_range(place: Place) -> None:
    make(place / "source", DATA)
    with opened(place / "source") as source, opened(place / "target", RDWR) as target:
        assert _copy_range(source, target, 1 << 30, 0, 0) == len(DATA)
        assert os.fstat(target).st_size == len(DATA)
    assert read(place / "target") == DATA
    assert read(place / "source") == DATA


def test_copy_file_range_of_a_part(place: Place) -> None:
    make(place / "source", DATA)
    make(place / "target", b"-" * 100_000)
    with opened(place / "source") as source, opened(place / "target", os.O_RDWR) as target:
        assert _copy_range(source, target, 12_345, 54_321, 7) == 12_345
    assert read(place / "target") == b"-" * 7 + DATA[54_321 : 54_321 + 12_345] + b"-" * (100_000 - 12_352)


def test_copy_file_range_within_a_file(place: Place) -> None:
    make(place / "file", DATA)
    with opened(place / "file", os.O_RDWR) as fd:
        assert _copy_range(fd, fd, 10_000, 0, 50_000) == 10_000
        with fails_with(errno.EINVAL):
            os.copy_file_range(fd, fd, 10_000, 0, 5000)
    assert read(place / "file") == DATA[:50_000] + DATA[:10_000] + DATA[60_000:]


def test_copy_file_range_sees_what_was_just_written(place: Place) -> None:
    with opened(place / "source", RDWR) as source, opened(place / "target", RDWR) as target:
        write_all(source, DATA)
        os.pwrite(source, b"fresh", 1000)
        assert _copy_range(source, target, 2000, 0, 0) == 2000
        assert os.pread(target, 5, 1000) == b"fresh"


def test_copy_file_range_beyond_the_end(place: Place) -> None:
    make(place / "source", b"content")
    with opened(place / "source") as source, opened(place / "target", RDWR) as target:
        assert os.copy_file_range(source, target, 100, 7, 0) == 0
        assert os.copy_file_range(source, target, 100, 4, 0) == 3
    assert read(place / "target") == b"ent"


def test_copy_file_range_of_wrong_descriptors(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file") as reading, opened(place / "file", os.O_WRONLY) as writing, opened(place) as directory:
        with fails_with(errno.EBADF):
            os.copy_file_range(reading, reading, 1, 0, 4)
        with fails_with(errno.EBADF):
            os.copy_file_range(writing, writing, 1, 0, 4)
        with fails_with(errno.EISDIR):
            os.copy_file_range(directory, writing, 1, 0, 0)


def test_sendfile_to_and_from(place: Place) -> None:
    memory = os.memfd_create("memory")
    os.write(memory, DATA)
    with opened(place / "file", RDWR) as fd:
        sent = 0
        while sent < len(DATA):
            sent += os.sendfile(fd, memory, sent, len(DATA) - sent)
        back = os.memfd_create("back")
        sent = 0
        while step := os.sendfile(back, fd, sent, 1 << 20):
            sent += step
    assert os.pread(back, len(DATA) + 1, 0) == DATA
    assert read(place / "file") == DATA


def test_sendfile_to_a_socket(place: Place) -> None:
    make(place / "file", DATA)
    one, two = socket.socketpair()
    received = bytearray()

    def take() -> None:
        while chunk := two.recv(1 << 16):
            received.extend(chunk)

    thread = threading.Thread(target=take)
    thread.start()
    with (place / "file").open("rb") as f:
        one.sendfile(f)
    one.close()
    thread.join()
    assert received == DATA


def test_splice(place: Place) -> None:
    taking, giving = os.pipe()
    os.write(giving, DATA[:50_000])
    with opened(place / "file", RDWR) as fd:
        left = 50_000
        while left:
            left -= os.splice(taking, fd, left)
        assert os.pread(fd, 60_000, 0) == DATA[:50_000]
        assert os.splice(fd, giving, 10_000, offset_src=1234) == 10_000
    assert os.read(taking, 10_000) == DATA[1234:11_234]


def test_clone_works_or_is_refused(place: Place) -> None:
    make(place / "source", DATA)
    with opened(place / "source") as source, opened(place / "target", RDWR) as target:
        refusals = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
        done = unless_refused(lambda: fcntl.ioctl(target, FICLONE, source), *refusals)
    assert read(place / "target") == (b"" if done is None else DATA)


def test_shutil_and_cp(place: Place) -> None:
    make(place / "source", DATA, 0o750)
    os.utime(place / "source", ns=(10**18 + 123_456_789, 10**18 + 987_654_321))
    shutil.copy2(place / "source", place / "one")
    subprocess.run(["cp", "-p", place / "source", place / "two"], check=True, timeout=LIMIT_S)
    subprocess.run(["cp", "--sparse=always", place / "source", place / "three"], check=True, timeout=LIMIT_S)
    for name in ("one", "two", "three"):
        assert read(place / name) == DATA
    for name in ("one", "two"):
        st = os.stat(place / name)
        assert (st.st_mode & 0o7777, st.st_mtime_ns) == (0o750, 10**18 + 987_654_321)


@pytest.mark.parametrize("call", [os.fsync, os.fdatasync, syncfs], ids=["fsync", "fdatasync", "syncfs"])
def test_sync(place: Place, call) -> None:
    with opened(place / "file", RDWR) as fd:
        write_all(fd, DATA)
        call(fd)
        os.pwrite(fd, b"more", 100)
        call(fd)
        call(fd)
        assert os.pread(fd, 4, 100) == b"more"
    assert read(place / "file") == DATA[:100] + b"more" + DATA[104:]


def test_sync_of_all(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        write_all(fd, b"content")
        os.sync()
    assert read(place / "file") == b"content"


def test_sync_file_range(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        write_all(fd, DATA)
        unless_refused(lambda: sync_file_range(fd, 0, 0, 7), errno.EOPNOTSUPP, errno.ENOSYS)
    assert read(place / "file") == DATA


@pytest.mark.parametrize("call", [os.fsync, os.fdatasync])
def test_sync_of_what_is_only_read(place: Place, call) -> None:
    make(place / "file", DATA)
    with opened(place / "file") as fd:
        call(fd)


def test_sync_of_a_directory(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place) as fd:
        os.fsync(fd)
        os.rename(place / "file", place / "renamed")
        os.fsync(fd)


def test_sync_keeps_size_and_time(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        write_all(fd, DATA)
        before = os.fstat(fd)
        tick()
        os.fsync(fd)
        after = os.fstat(fd)
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (len(DATA), before.st_mtime_ns, before.st_ino)


def test_sync_through_another_descriptor(place: Place) -> None:
    with opened(place / "file", RDWR) as writer, opened(place / "file") as other:
        write_all(writer, DATA)
        os.fsync(other)
        assert read(place / "file") == DATA
