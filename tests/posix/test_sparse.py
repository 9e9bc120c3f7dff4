"""Holes: read as zeros, found or not by SEEK_HOLE, made and filled by fallocate."""

from __future__ import annotations

import errno
import os

import pytest

from tests.posix.calls import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    MIB,
    fails_with,
    fallocate,
    make,
    opened,
    pattern,
    read,
    read_fd,
    unless_refused,
)
from tests.posix.places import Place

RDWR = os.O_CREAT | os.O_RDWR


def test_what_was_not_written_reads_as_zeros(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        os.pwrite(fd, b"end", 3 * MIB)
        os.pwrite(fd, b"middle", MIB + 5)
        expected = bytearray(3 * MIB + 3)
        expected[3 * MIB :] = b"end"
        expected[MIB + 5 : MIB + 11] = b"middle"
        assert read_fd(fd) == expected
    assert read(place / "file") == expected


def test_a_hole_takes_no_room(place: Place) -> None:
    """While the file is open, and on ext4 afterwards: a file of a bucket is as large as it says."""
    with opened(place / "file", RDWR) as fd:
        os.ftruncate(fd, 64 * MIB)
        os.pwrite(fd, b"x", 10 * MIB)
        st = os.fstat(fd)
        assert st.st_size == 64 * MIB
        assert st.st_blocks * 512 <= (64 * MIB if place.on_mount else MIB)


def test_a_very_large_file_that_is_not_kept(place: Place) -> None:
    """Offsets beyond 4 GiB are not cut. Removed while open: nothing of it is worth an upload."""
    with opened(place / "file", RDWR) as fd:
        os.unlink(place / "file")
        os.ftruncate(fd, 6 << 30)
        os.pwrite(fd, b"far", 5 << 30)
        assert os.fstat(fd).st_size == 6 << 30
        assert os.pread(fd, 5, (5 << 30) - 1) == b"\0far\0"
        assert os.pread(fd, 3, 1 << 30) == bytes(3)
        os.ftruncate(fd, 0)


@pytest.mark.parametrize("closed", [False, True])
def test_seek_hole_and_data(place: Place, closed: bool) -> None:
    """Data is never in what is called a hole; the end of the file is one. All may be data."""
    fd = os.open(place / "file", RDWR)
    os.pwrite(fd, b"x" * 4096, MIB)
    os.ftruncate(fd, 2 * MIB)
    if closed:
        os.close(fd)
        fd = os.open(place / "file", os.O_RDONLY)
    data = os.lseek(fd, 0, os.SEEK_DATA)
    assert data <= MIB
    assert os.lseek(fd, MIB, os.SEEK_DATA) == MIB
    hole = os.lseek(fd, MIB, os.SEEK_HOLE)
    assert MIB + 4096 <= hole <= 2 * MIB
    assert os.lseek(fd, 0, os.SEEK_HOLE) in (0, 2 * MIB)
    with fails_with(errno.ENXIO):
        os.lseek(fd, 2 * MIB, os.SEEK_DATA)
    with fails_with(errno.ENXIO):
        os.lseek(fd, 3 * MIB, os.SEEK_HOLE)
    os.close(fd)


def test_seek_hole_finds_all_data(place: Place) -> None:
    """A copy by SEEK_DATA and SEEK_HOLE, as cp and tar make it, is the file."""
    expected = bytearray(2 * MIB)
    with opened(place / "file", RDWR) as fd:
        os.ftruncate(fd, len(expected))
        for offset in (5, 300_000, MIB + 4096, 2 * MIB - 10):
            os.pwrite(fd, b"0123456789", offset)
            expected[offset : offset + 10] = b"0123456789"
        copied = bytearray(len(expected))
        position = 0
        while (start := unless_refused(lambda at=position: os.lseek(fd, at, os.SEEK_DATA), errno.ENXIO)) is not None:
            position = os.lseek(fd, start, os.SEEK_HOLE)
            assert position > start
            copied[start:position] = os.pread(fd, position - start, start)
    assert copied == expected


def test_seek_hole_in_an_empty_file(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd:
        for whence in (os.SEEK_HOLE, os.SEEK_DATA):
            with fails_with(errno.ENXIO):
                os.lseek(fd, 0, whence)


def test_fallocate_extends(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file", os.O_RDWR) as fd:
        done = unless_refused(lambda: fallocate(fd, 0, 0, 100_000) or True, errno.EOPNOTSUPP)
        assert os.fstat(fd).st_size == (100_000 if done else 7)
        assert read_fd(fd) == b"content".ljust(100_000 if done else 7, b"\0")


def test_fallocate_keeps_the_size(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file", os.O_RDWR) as fd:
        unless_refused(lambda: fallocate(fd, FALLOC_KEEP_SIZE, 0, 100_000), errno.EOPNOTSUPP)
        assert os.fstat(fd).st_size == 7
        assert read_fd(fd) == b"content"


@pytest.mark.parametrize("mode", [FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE], ids=["punch", "zero"])
def test_fallocate_zeroes(place: Place, mode: int) -> None:
    old = pattern(100_000)
    make(place / "file", old)
    with opened(place / "file", os.O_RDWR) as fd, opened(place / "file") as reader:
        assert read_fd(reader) == old
        done = unless_refused(lambda: fallocate(fd, mode, 5000, 50_000) or True, errno.EOPNOTSUPP)
        expected = old[:5000] + bytes(50_000) + old[55_000:] if done else old
        assert read_fd(fd) == expected
        assert read_fd(reader) == expected
        if done:  # beyond the end: a hole does not extend, zeros do
            fallocate(fd, mode, 90_000, 20_000)
            size = 100_000 if mode & FALLOC_KEEP_SIZE else 110_000
            expected = expected[:90_000].ljust(size, b"\0")
    assert read(place / "file") == expected


def test_fallocate_collapse_works_or_is_refused(place: Place) -> None:
    old = pattern(100 * 4096)
    make(place / "file", old)
    with opened(place / "file", os.O_RDWR) as fd:
        cut = unless_refused(
            lambda: fallocate(fd, FALLOC_COLLAPSE_RANGE, 4096, 4096) or True, errno.EOPNOTSUPP, errno.EINVAL
        )
    assert read(place / "file") == (old[:4096] + old[8192:] if cut else old)


def test_fallocate_of_wrong_ranges(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        for offset, length in ((-1, 10), (0, 0), (0, -1)):
            with fails_with(errno.EINVAL, errno.EOPNOTSUPP):
                fallocate(fd, 0, offset, length)
        with fails_with(errno.EFBIG, errno.EOPNOTSUPP):
            fallocate(fd, 0, (1 << 63) - 2, 100)
        assert os.fstat(fd).st_size == 0


@pytest.mark.parametrize("size", [0, 10, 50_000, 200_000])
def test_posix_fallocate(place: Place, size: int) -> None:
    make(place / "file", pattern(size))
    with opened(place / "file", os.O_RDWR) as fd:
        os.posix_fallocate(fd, 20, 100_000)
        assert os.fstat(fd).st_size == max(size, 100_020)
    assert os.stat(place / "file").st_size == max(size, 100_020)
    assert read(place / "file") == pattern(size).ljust(100_020, b"\0")


def test_writes_into_what_was_allocated(place: Place) -> None:
    with opened(place / "file", RDWR) as fd:
        os.posix_fallocate(fd, 0, 100_000)
        os.pwrite(fd, b"x" * 10_000, 50_000)
        assert os.fstat(fd).st_size == 100_000
    assert read(place / "file") == bytes(50_000) + b"x" * 10_000 + bytes(40_000)
