"""unlink and rmdir; files that live on without a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.posix.calls import exists, fails_with, make, names, opened, pattern, read, read_fd, tick, write_all
from tests.posix.places import Place
from tests.posix.processes import Process


def test_unlink(place: Place) -> None:
    make(place / "file", b"content")
    make(place / "other", b"other")
    os.unlink(place / "file")
    assert names(place) == ["other"]
    for call in (os.stat, os.unlink, os.listdir, read):
        with fails_with(errno.ENOENT):
            call(place / "file")


def test_an_open_file_is_read_and_written_on(place: Place) -> None:
    make(place / "file", pattern(100_000))
    with opened(place / "file", os.O_RDWR) as fd:
        os.unlink(place / "file")
        assert not exists(place / "file")
        assert names(place) == []
        assert read_fd(fd) == pattern(100_000)
        os.pwrite(fd, b"changed", 50_000)
        os.pwrite(fd, b"end", 100_000)
        st = os.fstat(fd)
        assert st.st_size == 100_003
        assert st.st_nlink == 0
        assert os.pread(fd, 7, 50_000) == b"changed"
        os.ftruncate(fd, 10)
        assert read_fd(fd) == pattern(10)
        os.fsync(fd)
    assert names(place) == []


def test_a_new_file_is_used_without_its_name(place: Place) -> None:
    """How temporary files are made."""
    with opened(place / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR) as fd:
        os.unlink(place / "file")
        write_all(fd, pattern(50_000))
        assert read_fd(fd) == pattern(50_000)
    assert names(place) == []


def test_metadata_of_a_file_without_name(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.unlink(place / "file")
        os.fchmod(fd, 0o611)
        os.utime(fd, ns=(10**18, 10**18 + 5))
        os.fchown(fd, 7, 8)
        st = os.fstat(fd)
        assert (st.st_mode & 0o7777, st.st_mtime_ns, st.st_uid, st.st_gid) == (0o611, 10**18 + 5, 7, 8)


def test_a_file_without_name_is_opened_again_by_proc(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file") as fd:
        os.unlink(place / "file")
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"content"
        if place.on_mount:  # it was not open for writing when it lost its name
            with fails_with(errno.ESTALE):
                os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
            return
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as writer:
            os.pwrite(writer, b"CON", 0)
        assert os.pread(fd, 10, 0) == b"CONtent"


def test_a_new_file_of_the_name_is_another(place: Place) -> None:
    make(place / "file", b"old")
    with opened(place / "file", os.O_RDWR) as old:
        os.unlink(place / "file")
        make(place / "file", b"new")
        assert os.fstat(old).st_ino != os.stat(place / "file").st_ino
        os.pwrite(old, b"lost", 0)
        assert read(place / "file") == b"new"
        assert read_fd(old) == b"lost"
    assert read(place / "file") == b"new"
    assert names(place) == ["file"]


@pytest.mark.parametrize("write", [False, True], ids=["read", "written"])
def test_removed_and_made_many_times(place: Place, write: bool) -> None:
    for i in range(30):
        with opened(place / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR) as fd:
            if write:
                os.write(fd, b"%d" % i)
            assert read(place / "file") == (b"%d" % i if write else b"")
            os.unlink(place / "file")
    assert names(place) == []


def test_while_another_process_has_it_open(place: Place) -> None:
    make(place / "file", b"content")
    with opened(place / "file") as fd:
        Process(os.unlink, place / "file").result()
        assert read_fd(fd) == b"content"
    assert names(place) == []


def test_a_file_that_was_just_written_is_read_without_its_name(place: Place) -> None:
    make(place / "file", pattern(100_000))
    with opened(place / "file") as fd:
        os.unlink(place / "file")
        st = os.fstat(fd)
        assert (st.st_size, st.st_nlink) == (100_000, 0)
        assert read_fd(fd) == pattern(100_000)
    assert names(place) == []


def test_unlink_of_a_directory(place: Place) -> None:
    os.mkdir(place / "directory")
    with fails_with(errno.EISDIR):
        os.unlink(place / "directory")
    assert names(place) == ["directory"]


def test_unlink_of_a_file_without_permission_bits(place: Place) -> None:
    make(place / "file", b"x", 0)
    os.unlink(place / "file")
    assert names(place) == []


def test_unlink_of_a_symlink_leaves_its_target(place: Place) -> None:
    make(place / "target", b"content")
    os.symlink("target", place / "link")
    os.unlink(place / "link")
    assert names(place) == ["target"]
    assert read(place / "target") == b"content"


def test_unlink_below_a_file_and_in_a_missing_directory(place: Place) -> None:
    make(place / "file")
    with fails_with(errno.ENOTDIR):
        os.unlink(place / "file/below")
    with fails_with(errno.ENOENT):
        os.unlink(place / "missing/file")


def test_unlink_changes_the_times_of_the_directory(place: Place) -> None:
    make(place / "file")
    before = os.stat(place)
    tick()
    os.unlink(place / "file")
    after = os.stat(place)
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_rmdir(place: Place) -> None:
    os.mkdir(place / "directory")
    os.rmdir(place / "directory")
    assert names(place) == []
    with fails_with(errno.ENOENT):
        os.rmdir(place / "directory")


@pytest.mark.parametrize("content", ["file", "directory", "link", "fifo", "open"])
def test_rmdir_of_what_is_not_empty(place: Place, content: str) -> None:
    os.mkdir(place / "directory")
    path = place / "directory/content"
    held = -1
    if content == "file":
        make(path)
    elif content == "directory":
        os.mkdir(path)
    elif content == "link":
        os.symlink("nothing", path)
    elif content == "fifo":
        os.mkfifo(path)
    else:
        held = os.open(path, os.O_CREAT | os.O_WRONLY)
    with fails_with(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir(place / "directory")
    assert names(place / "directory") == ["content"]
    if held >= 0:
        os.close(held)
    os.rmdir(path) if content == "directory" else os.unlink(path)
    os.rmdir(place / "directory")
    assert names(place) == []


def test_rmdir_when_the_last_file_is_open_but_removed(place: Place) -> None:
    os.mkdir(place / "directory")
    with opened(place / "directory/file", os.O_CREAT | os.O_RDWR) as fd:
        write_all(fd, b"content")
        os.unlink(place / "directory/file")
        os.rmdir(place / "directory")
        assert read_fd(fd) == b"content"
    assert names(place) == []


def test_rmdir_of_a_file(place: Place) -> None:
    make(place / "file")
    os.symlink(".", place / "link")
    for name in ("file", "link", "file/below"):
        with fails_with(errno.ENOTDIR):
            os.rmdir(place / name)


def test_rmdir_of_dots(place: Place) -> None:
    os.mkdir(place / "directory")
    os.chdir(place / "directory")
    with fails_with(errno.EINVAL):
        os.rmdir(".")
    with fails_with(errno.ENOTEMPTY, errno.EINVAL):
        os.rmdir("..")
    with fails_with(errno.EINVAL):
        os.rmdir(f"{place}/directory/.")
    assert names(place) == ["directory"]


def test_rmdir_of_the_working_directory(place: Place) -> None:
    os.mkdir(place / "directory")
    os.chdir(place / "directory")
    os.rmdir(place / "directory")
    assert os.listdir(".") == []
    for call in (lambda: make("file"), lambda: os.mkdir("new"), os.getcwd):
        with fails_with(errno.ENOENT):
            call()
    assert names(place) == []


def test_a_directory_made_again(place: Place) -> None:
    for i in range(10):
        os.mkdir(place / "directory")
        assert names(place / "directory") == []
        make(place.path / "directory" / f"{i}")
        assert names(place / "directory") == [f"{i}"]
        os.unlink(place.path / "directory" / f"{i}")
        os.rmdir(place / "directory")
    assert names(place) == []


def test_a_file_where_a_directory_was_and_the_other_way(place: Place) -> None:
    for _ in range(3):
        os.mkdir(place / "name")
        make(place / "name/file")
        os.unlink(place / "name/file")
        os.rmdir(place / "name")
        make(place / "name", b"content")
        assert read(place / "name") == b"content"
        with fails_with(errno.ENOTDIR):
            os.stat(place / "name/file")
        os.unlink(place / "name")
