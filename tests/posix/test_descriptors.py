"""What descriptors refuse, and what they share."""

from __future__ import annotations

import errno
import fcntl
import os
import termios

import pytest

from tests.posix.calls import fails_with, make, opened, pattern, read, write_all
from tests.posix.places import Place
from tests.posix.processes import Process


def test_no_write_to_a_descriptor_for_reading(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file") as fd:
        for call in (
            lambda: os.write(fd, b"x"), lambda: os.pwrite(fd, b"x", 0), lambda: os.writev(fd, [b"x"]),
            lambda: os.posix_fallocate(fd, 0, 10),
        ):  # fmt: skip
            with fails_with(errno.EBADF):
                call()
        with fails_with(errno.EINVAL):
            os.ftruncate(fd, 0)
    assert read(place / "file") == b"content"


def test_no_read_from_a_descriptor_for_writing(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file", os.O_WRONLY) as fd:
        for call in (lambda: os.read(fd, 1), lambda: os.pread(fd, 1, 0), lambda: os.readv(fd, [bytearray(1)])):
            with fails_with(errno.EBADF):
                call()


def test_a_closed_descriptor(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.close(fd)
        for call in (
            lambda: os.write(fd, b"x"), lambda: os.read(fd, 1), lambda: os.fsync(fd), lambda: os.fstat(fd),
            lambda: os.lseek(fd, 0, os.SEEK_SET), lambda: os.ftruncate(fd, 0), lambda: os.close(fd),
        ):  # fmt: skip
            with fails_with(errno.EBADF):
                call()


def test_seek(place: Place) -> None:
    make(place / "file", pattern(1000))
    with opened(place / "file", os.O_RDWR) as fd:
        assert os.lseek(fd, -10, os.SEEK_END) == 990
        assert os.read(fd, 100) == pattern(1000)[990:]
        assert os.lseek(fd, -500, os.SEEK_CUR) == 500
        assert os.read(fd, 1) == pattern(1000)[500:501]
        assert os.lseek(fd, 5000, os.SEEK_SET) == 5000
        assert os.read(fd, 10) == b""
        assert os.fstat(fd).st_size == 1000
        with fails_with(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        with fails_with(errno.EINVAL):
            os.lseek(fd, 0, 99)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5000


def test_seek_to_the_end_follows_writes(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd, opened(place / "file") as other:
        for size in (10, 5000, 5001):
            os.pwrite(fd, b"x", size - 1)
            assert os.lseek(fd, 0, os.SEEK_END) == size
            assert os.lseek(other, 0, os.SEEK_END) == size


def test_a_duplicate_shares_the_position(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        other = os.dup(fd)
        os.write(fd, b"one")
        os.write(other, b"two")
        os.close(other)
        os.write(fd, b"three")
        assert os.pread(fd, 100, 0) == b"onetwothree"
    assert read(place / "file") == b"onetwothree"


def test_a_forked_process_shares_the_position(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"parent ")
        Process(os.write, fd, b"child ").result()
        os.write(fd, b"parent")
    assert read(place / "file") == b"parent child parent"


def test_two_opens_have_positions_of_their_own(place: Place) -> None:
    make(place / "file", b"0123456789")
    with opened(place / "file") as one, opened(place / "file") as two:
        assert os.read(one, 5) == b"01234"
        assert os.read(two, 3) == b"012"
        assert os.read(one, 5) == b"56789"


def test_getfl_and_setfl(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        write_all(fd, b"0123456789")
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"end")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"start")
    assert read(place / "file") == b"start56789end"


def test_a_file_is_no_terminal(place: Place) -> None:
    make(place / "file")
    with opened(place / "file") as fd:
        assert not os.isatty(fd)
        with pytest.raises(termios.error) as caught:
            termios.tcgetattr(fd)
        assert caught.value.args[0] == errno.ENOTTY


@pytest.mark.parametrize("advice", ["NORMAL", "SEQUENTIAL", "RANDOM", "WILLNEED", "DONTNEED", "NOREUSE"])
def test_advice(place: Place, advice: str) -> None:
    """It changes no content, also while there are writes under way."""
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        write_all(fd, pattern(100_000))
        os.posix_fadvise(fd, 0, 0, getattr(os, f"POSIX_FADV_{advice}"))
        assert os.pread(fd, 100_001, 0) == pattern(100_000)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, getattr(os, f"POSIX_FADV_{advice}"))
        assert os.pread(fd, 100_001, 0) == pattern(100_000)


def test_reopened_by_proc(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file") as fd, opened(f"/proc/self/fd/{fd}", os.O_RDWR) as writer:
        os.pwrite(writer, b"CON", 0)
        assert os.pread(fd, 10, 0) == b"CONtent"
