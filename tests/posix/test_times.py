"""utimensat and the times that calls leave."""

from __future__ import annotations

import errno
import os

import pytest

from tests.posix.calls import (
    AT_SYMLINK_NOFOLLOW,
    UTIME_NOW,
    UTIME_OMIT,
    fails_with,
    make,
    now_ns,
    opened,
    read,
    tick,
    utimensat,
    write_all,
)
from tests.posix.places import Place

SECOND = 10**9


@pytest.mark.parametrize(
    "stamp", [0, 1, SECOND, 1_234_567_890_123_456_789, (1 << 31) * SECOND + 5, (1 << 32) * SECOND + 999_999_999]
)
def test_nanoseconds(place: Place, stamp: int) -> None:
    make(place / "file", b"content")
    os.utime(place / "file", ns=(stamp + 1, stamp))
    st = os.stat(place / "file")
    assert (st.st_atime_ns, st.st_mtime_ns) == (stamp + 1, stamp)


def test_before_1970(place: Place) -> None:
    make(place / "file", b"content")
    os.utime(place / "file", ns=(-5 * SECOND, -3 * SECOND + 7))
    st = os.stat(place / "file")
    assert (st.st_atime_ns, st.st_mtime_ns) == (-5 * SECOND, -3 * SECOND + 7)


@pytest.mark.parametrize("make_it", [make, os.mkdir, os.mkfifo], ids=["file", "directory", "fifo"])
def test_of_each_kind(place: Place, make_it) -> None:
    make_it(place / "it")
    os.utime(place / "it", ns=(10**18 + 1, 10**18 + 2))
    st = os.stat(place / "it")
    assert (st.st_atime_ns, st.st_mtime_ns) == (10**18 + 1, 10**18 + 2)


def test_now(place: Place) -> None:
    make(place / "file")
    os.utime(place / "file", (1, 1))
    began = now_ns()
    utimensat(place / "file", (0, UTIME_NOW), (0, UTIME_NOW))
    st = os.stat(place / "file")
    assert began <= st.st_mtime_ns < began + 5 * SECOND
    assert began <= st.st_atime_ns < began + 5 * SECOND


def test_omit(place: Place) -> None:
    make(place / "file")
    os.utime(place / "file", ns=(111, 222))
    utimensat(place / "file", (5, 6), (0, UTIME_OMIT))
    st = os.stat(place / "file")
    assert (st.st_atime_ns, st.st_mtime_ns) == (5 * SECOND + 6, 222)
    utimensat(place / "file", (0, UTIME_OMIT), (7, 8))
    st = os.stat(place / "file")
    assert (st.st_atime_ns, st.st_mtime_ns) == (5 * SECOND + 6, 7 * SECOND + 8)
    utimensat(place / "file", (0, UTIME_OMIT), (0, UTIME_OMIT))
    st = os.stat(place / "file")
    assert (st.st_atime_ns, st.st_mtime_ns) == (5 * SECOND + 6, 7 * SECOND + 8)


def test_one_now_and_one_given(place: Place) -> None:
    make(place / "file")
    began = now_ns()
    utimensat(place / "file", (3, 4), (0, UTIME_NOW))
    st = os.stat(place / "file")
    assert st.st_atime_ns == 3 * SECOND + 4
    assert began <= st.st_mtime_ns < began + 5 * SECOND


def test_ctime_is_now(place: Place) -> None:
    make(place / "file")
    tick()
    began = now_ns()
    os.utime(place / "file", ns=(1, 2))
    assert began <= os.stat(place / "file").st_ctime_ns < began + 5 * SECOND


def test_nofollow(place: Place) -> None:
    make(place / "file")
    os.symlink("file", place / "link")
    os.utime(place / "file", ns=(1, 2))
    utimensat(place / "link", (3, 4), (5, 6), AT_SYMLINK_NOFOLLOW)
    assert os.lstat(place / "link").st_mtime_ns == 5 * SECOND + 6
    assert os.stat(place / "link").st_mtime_ns == 2


def test_wrong_nanoseconds(place: Place) -> None:
    make(place / "file")
    with fails_with(errno.EINVAL):
        utimensat(place / "file", (0, 10**9), (0, 0))


def test_of_an_open_file_that_was_written(place: Place) -> None:
    """As cp -p and tar do: written, then given its times, then closed. Nothing may set them again."""
    with opened(place / "file", os.O_CREAT | os.O_WRONLY) as fd:
        write_all(fd, b"content")
        os.utime(fd, ns=(10**18 + 1, 10**18 + 2))
        assert os.fstat(fd).st_mtime_ns == 10**18 + 2
    st = os.stat(place / "file")
    assert (st.st_mtime_ns, st.st_size) == (10**18 + 2, 7)
    tick()
    assert read(place / "file") == b"content"
    with opened(place / "file") as fd:
        os.fsync(fd)
    assert os.stat(place / "file").st_mtime_ns == 10**18 + 2


def test_by_path_while_it_is_open(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_WRONLY) as fd:
        write_all(fd, b"content")
        os.utime(place / "file", ns=(10**18 + 1, 10**18 + 2))
        os.fsync(fd)
        assert os.fstat(fd).st_mtime_ns == 10**18 + 2
    assert os.stat(place / "file").st_mtime_ns == 10**18 + 2


def test_a_write_after_it_sets_the_time_again(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_WRONLY) as fd:
        write_all(fd, b"content")
        os.utime(fd, ns=(111, 222))
        tick()
        began = now_ns()
        write_all(fd, b"more")
        assert os.stat(place / "file").st_mtime_ns >= began
    assert os.stat(place / "file").st_mtime_ns >= began


def test_reading_changes_no_mtime(place: Place) -> None:
    make(place / "file", b"content")
    before = os.stat(place / "file")
    tick()
    read(place / "file")
    os.listdir(place)
    after = os.stat(place / "file")
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_of_a_directory_stay_when_given(place: Place) -> None:
    """As tar does: the content first, then the times of the directory."""
    os.mkdir(place / "directory")
    make(place / "directory/file", b"content")
    os.utime(place / "directory", ns=(10**18 + 1, 10**18 + 2))
    tick()
    assert os.listdir(place / "directory") == ["file"]
    assert read(place / "directory/file") == b"content"
    with opened(place / "directory/file", os.O_WRONLY) as fd:
        os.write(fd, b"CON")
    assert os.stat(place / "directory").st_mtime_ns == 10**18 + 2


def test_mtime_of_each_change_is_later(place: Place) -> None:
    stamps = []
    for i in range(5):
        with opened(place / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"%d" % i)
        stamps.append(os.stat(place / "file").st_mtime_ns)
        tick()
    assert stamps == sorted(set(stamps))
