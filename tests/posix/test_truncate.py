"""truncate and ftruncate: shorter, longer, the same, of open files and not, under readers' eyes."""

from __future__ import annotations

import errno
import os

import pytest

from tests.posix.calls import MIB, fails_with, make, now_ns, opened, pattern, read, read_fd, tick
from tests.posix.places import Place

SIZE = MIB + 1000
OLD = pattern(SIZE)
SIZES = [0, 1, 4096, 5000, MIB, SIZE - 1, SIZE, SIZE + 1, 2 * MIB, 3 * MIB + 5]


def _expected(size: int) -> bytes:
    return OLD[:size].ljust(size, b"\0")


@pytest.mark.parametrize("size", SIZES)
def test_of_a_closed_file(place: Place, size: int) -> None:
    make(place / "file", OLD)
    os.truncate(place / "file", size)
    assert os.stat(place / "file").st_size == size
    assert read(place / "file") == _expected(size)


@pytest.mark.parametrize("size", SIZES)
def test_of_an_open_file(place: Place, size: int) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, opened(place / "file") as reader:
        os.ftruncate(fd, size)
        for st in (os.fstat(fd), os.fstat(reader), os.stat(place / "file")):
            assert st.st_size == size
        for each in (fd, reader):
            assert read_fd(each) == _expected(size)
    assert read(place / "file") == _expected(size)


@pytest.mark.parametrize("size", [0, 5000, 2 * MIB])
def test_by_path_while_open(place: Place, size: int) -> None:
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as writer, opened(place / "file") as reader:
        assert read_fd(reader) == OLD
        os.pwrite(writer, b"written", 100)
        os.truncate(place / "file", size)
        assert os.fstat(writer).st_size == size
        expected = bytearray(OLD)
        expected[100:107] = b"written"
        expected = expected[:size].ljust(size, b"\0")
        assert read_fd(reader) == expected
        assert read_fd(writer) == expected


def test_what_was_cut_off_does_not_come_back(place: Place) -> None:
    """Shorter, then longer: zeros, also within the last page and through descriptors that had read the old bytes."""
    make(place / "file", OLD)
    with opened(place / "file", os.O_RDWR) as fd, opened(place / "file") as reader:
        assert read_fd(reader) == OLD
        os.ftruncate(fd, 1000)
        os.ftruncate(fd, 10_000)
        assert read_fd(reader) == OLD[:1000] + bytes(9000)
        os.ftruncate(fd, 500)
        os.pwrite(fd, b"x", 2000)
        assert read_fd(reader) == OLD[:500] + bytes(1500) + b"x"
    assert read(place / "file") == OLD[:500] + bytes(1500) + b"x"


def test_closed_in_between(place: Place) -> None:
    make(place / "file", OLD)
    for size in (MIB // 2, 2 * MIB, 100, 5000):
        os.truncate(place / "file", size)
    assert read(place / "file") == OLD[:100].ljust(5000, b"\0")


def test_writes_go_on_where_they_were(place: Place) -> None:
    """The position stays: what is written after a cut leaves a hole before it."""
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"0123456789")
        os.ftruncate(fd, 2)
        os.write(fd, b"x")
        assert os.pread(fd, 20, 0) == b"01" + bytes(8) + b"x"


def test_of_a_new_file(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 100_000)
        assert read_fd(fd) == bytes(100_000)
    assert read(place / "file") == bytes(100_000)


def test_of_an_empty_file(place: Place) -> None:
    make(place / "file")
    os.truncate(place / "file", 5)
    assert read(place / "file") == bytes(5)
    os.truncate(place / "file", 0)
    assert read(place / "file") == b""


@pytest.mark.parametrize("size", [0, 10, 100])
def test_times(place: Place, size: int) -> None:
    make(place / "file", b"0123456789")
    before = os.stat(place / "file")
    tick()
    began = now_ns()
    with opened(place / "file", os.O_WRONLY) as fd:
        os.ftruncate(fd, size)
        assert os.fstat(fd).st_mtime_ns >= began
    after = os.stat(place / "file")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_ino == before.st_ino


def test_of_a_file_without_permission_bits_through_its_descriptor(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR, 0o400) as fd:
        os.write(fd, b"0123456789")
        os.fchmod(fd, 0)
        os.ftruncate(fd, 3)
    assert read(place / "file") == b"012"


def test_through_a_symlink(place: Place) -> None:
    make(place / "file", b"0123456789")
    os.symlink("file", place / "link")
    os.truncate(place / "link", 4)
    assert read(place / "file") == b"0123"


def test_what_cannot_be_truncated(place: Place) -> None:
    make(place / "file", b"content")
    os.mkdir(place / "directory")
    for path, number in (
        ("missing", errno.ENOENT), ("directory", errno.EISDIR), ("file/below", errno.ENOTDIR)
    ):  # fmt: skip
        with fails_with(number):
            os.truncate(place / path, 0)
    with fails_with(errno.EINVAL):
        os.truncate(place / "file", -1)
    with opened(place / "file", os.O_RDWR) as fd, fails_with(errno.EINVAL):
        os.ftruncate(fd, -1)
    with fails_with(errno.EFBIG, errno.EINVAL, errno.ENOSPC):
        os.truncate(place / "file", (1 << 63) - 1)
    assert read(place / "file") == b"content"
