"""Writes: at any offset, seen at once by all."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal

import pytest

from tests.posix.calls import (
    KIB,
    MIB,
    fails_with,
    make,
    now_ns,
    opened,
    pattern,
    read,
    read_fd,
    tick,
    write_all,
)
from tests.posix.places import Place
from tests.posix.processes import Process

RDWR = os.O_CREAT | os.O_RDWR


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 128 * KIB, MIB, MIB + 1, 8 * MIB + 3])
def test_write_close_read(place: Place, size: int) -> None:
    data = pattern(size)
    make(place / "file", data)
    assert os.stat(place / "file").st_size == size
    assert read(place / "file") == data


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 5000, 999_990, MIB, 3 * MIB + 7])
def test_overwrite_at(place: Place, offset: int) -> None:
    """Of a file that was closed before: what is not written stays."""
    old = pattern(MIB, 1)
    make(place / "file", old)
    with opened(place / "file", os.O_WRONLY) as fd:
        assert os.pwrite(fd, b"NEW" * 1000, offset) == 3000
    expected = bytearray(old.ljust(offset + 3000, b"\0") if offset + 3000 > MIB else old)
    expected[offset : offset + 3000] = b"NEW" * 1000
    assert read(place / "file") == expected


def test_write_moves_the_position_and_pwrite_does_not(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        os.write(fd, b"0123456789")
        os.pwrite(fd, b"xx", 2)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 10
        os.write(fd, b"end")
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.read(fd, 100) == b"01xx456789end"


def test_write_nothing(place: Place) -> None:
    make(place / "file", b"content")
    before = os.stat(place / "file")
    tick()
    with opened(place / "file", os.O_WRONLY) as fd:
        assert os.write(fd, b"") == 0
        assert os.pwrite(fd, b"", 10_000) == 0
    after = os.stat(place / "file")
    assert (after.st_size, after.st_mtime_ns) == (7, before.st_mtime_ns)


def test_vectors(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        parts = [b"one", b"", pattern(10_000), b"three"]
        assert os.writev(fd, parts) == sum(map(len, parts))
        assert os.pwritev(fd, [b"x" * 5000, b"y" * 10], 20_000) == 5010
        expected = b"".join(parts).ljust(20_000, b"\0") + b"x" * 5000 + b"y" * 10
        assert read_fd(fd) == expected
        one, two = bytearray(3), bytearray(100)
        assert os.preadv(fd, [one, two], 0) == 103
        assert bytes(one + two) == expected[:103]
    assert read(place / "file") == expected


def test_many_small_writes(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        for i in range(2000):
            os.write(fd, b"%07d\n" % i)
        assert os.fstat(fd).st_size == 16_000
    assert read(place / "file") == b"".join(b"%07d\n" % i for i in range(2000))


def test_another_descriptor_reads_what_was_written(place: Place) -> None:
    with opened(place / "file", RDWR) as writer, opened(place / "file") as reader:
        for i in range(50):
            part = pattern(3000, i)
            write_all(writer, part)
            assert os.read(reader, 10_000) == part
        os.pwrite(writer, b"changed", 100)
        assert os.pread(reader, 7, 100) == b"changed"
        assert read(place / "file")[100:107] == b"changed"


def test_a_new_open_reads_what_was_written(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        for i in range(10):
            write_all(fd, pattern(5000, i))
            assert read(place / "file") == b"".join(pattern(5000, n) for n in range(i + 1))


def test_another_process_reads_what_was_written(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        for i in range(5):
            os.pwrite(fd, b"%d" % i * 5000, i * 2500)
            assert Process(read, place / "file").result() == read_fd(fd)


def test_two_writers_of_one_file(place: Place) -> None:
    with opened(place / "file", RDWR) as one, opened(place / "file", os.O_WRONLY) as two:
        os.pwrite(one, b"1" * 6000, 0)
        os.pwrite(two, b"2" * 6000, 3000)
        os.pwrite(one, b"3" * 10, 5000)
        expected = b"1" * 3000 + b"2" * 2000 + b"3" * 10 + b"2" * 3990
        assert read_fd(one) == expected
        os.close(one)
        assert read(place / "file") == expected
        os.pwrite(two, b"4", 0)
    assert read(place / "file") == b"4" + expected[1:]


def test_a_reader_from_before_sees_the_writes(place: Place) -> None:
    """Of a file that was only read so far: the reader's pages must not stay old."""
    make(place / "file", pattern(200_000))
    with opened(place / "file") as reader:
        assert read_fd(reader) == pattern(200_000)
        with opened(place / "file", os.O_WRONLY) as writer:
            os.pwrite(writer, b"new" * 1000, 50_000)
            assert os.pread(reader, 3000, 50_000) == b"new" * 1000
        assert os.pread(reader, 3000, 50_000) == b"new" * 1000
        assert os.pread(reader, 1000, 0) == pattern(1000)


def test_size_and_time_while_writing(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        last = 0
        for size in (10, 4096, 100_000):
            tick()
            began = now_ns()
            os.pwrite(fd, b"x", size - 1)
            for st in (os.fstat(fd), os.stat(place / "file")):
                assert st.st_size == size
                assert st.st_mtime_ns >= max(began, last + 1)
            last = st.st_mtime_ns
    closed = os.stat(place / "file")
    assert closed.st_size == 100_000
    assert closed.st_mtime_ns >= last


def test_time_stays_after_close(place: Place) -> None:
    """What a program such as make compares must not change once the file is closed."""
    make(place / "file", b"content")
    first = os.stat(place / "file")
    tick()
    assert read(place / "file") == b"content"
    again = os.stat(place / "file")
    assert (again.st_mtime_ns, again.st_ctime_ns, again.st_ino) == (first.st_mtime_ns, first.st_ctime_ns, first.st_ino)


def test_time_of_an_overwrite_of_the_same_size(place: Place) -> None:
    make(place / "file", b"content")
    before = os.stat(place / "file")
    tick()
    with opened(place / "file", os.O_WRONLY) as fd:
        os.write(fd, b"CONTENT")
        assert os.stat(place / "file").st_mtime_ns > before.st_mtime_ns
    after = os.stat(place / "file")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_closing_without_writing_changes_nothing(place: Place) -> None:
    make(place / "file", b"content")
    before = os.stat(place / "file")
    tick()
    with opened(place / "file", os.O_RDWR):
        pass
    after = os.stat(place / "file")
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (before.st_mtime_ns, before.st_ino, 7)


def test_read_at_the_end_gives_nothing(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        os.write(fd, b"content")
        assert os.read(fd, 10) == b""
        assert os.pread(fd, 10, 7) == b""
        assert os.pread(fd, 10, 1 << 40) == b""
        assert os.pread(fd, 10, 5) == b"nt"


def test_offsets_that_cannot_be(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        with fails_with(errno.EINVAL):
            os.pwrite(fd, b"x", -1)
        with fails_with(errno.EINVAL):
            os.pread(fd, 1, -1)
        with fails_with(errno.EFBIG, errno.EINVAL):
            os.pwrite(fd, b"xx", (1 << 63) - 2)
        assert os.fstat(fd).st_size == 0


def test_the_limit_of_the_process(place: Place) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with opened(place / "file", RDWR) as fd:
        assert os.write(fd, b"x" * 2000) == 1000
        with fails_with(errno.EFBIG):
            os.write(fd, b"x")
        with fails_with(errno.EFBIG):
            os.ftruncate(fd, 1001)
        assert os.fstat(fd).st_size == 1000


def test_random_writes(place: Place) -> None:
    """Against a bytearray; reopened now and then."""
    rng = random.Random(7)
    expected = bytearray()
    fd = os.open(place / "file", RDWR)
    for step in range(300):
        offset, length = rng.randrange(300_000), rng.choice((1, 100, 4096, 20_000))
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            assert os.pwrite(fd, data, offset) == length
            if len(expected) < offset + length:
                expected.extend(bytes(offset + length - len(expected)))
            expected[offset : offset + length] = data
        else:
            assert os.pread(fd, length, offset) == expected[offset : offset + length], f"step {step}"
        if rng.random() < 0.05:
            os.close(fd)
            fd = os.open(place / "file", os.O_RDWR)
    assert read_fd(fd) == expected
    os.close(fd)
    assert read(place / "file") == expected
