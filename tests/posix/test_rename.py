"""rename of files and links, over what is there or not, open or not."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    exists,
    fails_with,
    make,
    names,
    opened,
    pattern,
    read,
    read_fd,
    renameat2,
    tick,
    write_all,
)
from tests.posix.places import Place


def test_to_a_new_name(place: Place) -> None:
    make(place / "one", b"content", 0o640)
    before = os.stat(place / "one")
    os.rename(place / "one", place / "two")
    after = os.stat(place / "two")
    assert names(place) == ["two"]
    assert read(place / "two") == b"content"
    for field in ("st_ino", "st_mode", "st_size", "st_mtime_ns", "st_uid", "st_gid"):
        assert getattr(after, field) == getattr(before, field), field


def test_to_another_directory(place: Place) -> None:
    os.mkdir(place / "directory")
    make(place / "file", b"content")
    inode = os.stat(place / "file").st_ino
    os.rename(place / "file", place / "directory/file")
    assert names(place) == ["directory"]
    assert names(place / "directory") == ["file"]
    assert os.stat(place / "directory/file").st_ino == inode
    os.rename(place / "directory/file", place / "back")
    assert names(place / "directory") == []
    assert read(place / "back") == b"content"


def test_over_a_file(place: Place) -> None:
    make(place / "one", b"one")
    make(place / "two", b"two, longer", 0o600)
    inode = os.stat(place / "one").st_ino
    os.rename(place / "one", place / "two")
    assert names(place) == ["two"]
    assert read(place / "two") == b"one"
    st = os.stat(place / "two")
    assert (st.st_ino, stat.S_IMODE(st.st_mode), st.st_size) == (inode, 0o644, 3)


def test_over_itself(place: Place) -> None:
    make(place / "file", b"content")
    before = os.stat(place / "file")
    os.rename(place / "file", place / "file")
    os.rename(place / "file", f"{place}/./file")
    after = os.stat(place / "file")
    assert read(place / "file") == b"content"
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_there_and_back_again(place: Place) -> None:
    make(place / "one", b"content")
    for _ in range(10):
        os.rename(place / "one", place / "two")
        os.rename(place / "two", place / "one")
    assert names(place) == ["one"]
    assert read(place / "one") == b"content"


def test_a_new_file_under_the_old_name(place: Place) -> None:
    """Log rotation: what is renamed stays what it is when its name is made again."""
    fd = os.open(place / "log", os.O_CREAT | os.O_RDWR)
    write_all(fd, b"old")
    os.rename(place / "log", place / "log.1")
    make(place / "log", b"new")
    write_all(fd, b" and more")
    os.close(fd)
    assert read(place / "log") == b"new"
    assert read(place / "log.1") == b"old and more"
    assert os.stat(place / "log").st_ino != os.stat(place / "log.1").st_ino


@pytest.mark.parametrize("sync", [False, True], ids=["plain", "fsync"])
def test_write_elsewhere_then_rename_over(place: Place, sync: bool) -> None:
    """How editors and package managers save."""
    for i in range(5):
        with opened(place / ".file.new", os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
            write_all(fd, pattern(10_000 + i, i))
            if sync:
                os.fsync(fd)
        os.rename(place / ".file.new", place / "file")
        assert read(place / "file") == pattern(10_000 + i, i)
    assert names(place) == ["file"]


def test_an_open_source_is_written_on(place: Place) -> None:
    with opened(place / "one", os.O_CREAT | os.O_RDWR) as fd, opened(place / "one") as reader:
        write_all(fd, b"before ")
        os.rename(place / "one", place / "two")
        write_all(fd, b"after")
        assert read_fd(reader) == b"before after"
        assert read(place / "two") == b"before after"
        assert os.fstat(fd).st_ino == os.stat(place / "two").st_ino
        os.ftruncate(fd, 6)
        assert os.stat(place / "two").st_size == 6
    assert read(place / "two") == b"before"
    assert names(place) == ["two"]


def test_an_open_target_is_still_read_and_written(place: Place) -> None:
    make(place / "one", b"one")
    make(place / "two", b"two")
    with opened(place / "two", os.O_RDWR) as old:
        os.rename(place / "one", place / "two")
        assert read_fd(old) == b"two"
        os.pwrite(old, b" gone", 3)
        assert read_fd(old) == b"two gone"
        assert os.fstat(old).st_ino != os.stat(place / "two").st_ino
        assert read(place / "two") == b"one"
    assert read(place / "two") == b"one"
    assert names(place) == ["two"]


def test_open_source_and_target_both_written(place: Place) -> None:
    with (
        opened(place / "one", os.O_CREAT | os.O_RDWR) as one,
        opened(place / "two", os.O_CREAT | os.O_RDWR) as two,
    ):
        write_all(one, b"one")
        write_all(two, b"two")
        os.rename(place / "one", place / "two")
        write_all(two, b" lost")
        write_all(one, b" kept")
        assert read_fd(two) == b"two lost"
        assert read_fd(one) == b"one kept"
    assert read(place / "two") == b"one kept"


def test_a_file_and_a_directory_do_not_replace_each_other(place: Place) -> None:
    make(place / "file", b"content")
    os.mkdir(place / "directory")
    with fails_with(errno.EISDIR):
        os.rename(place / "file", place / "directory")
    with fails_with(errno.ENOTDIR):
        os.rename(place / "directory", place / "file")
    assert names(place) == ["directory", "file"]
    assert read(place / "file") == b"content"


def test_what_is_missing(place: Place) -> None:
    make(place / "file")
    for source, target, number in (
        ("missing", "new", errno.ENOENT),
        ("missing", "file", errno.ENOENT),
        ("file", "missing/new", errno.ENOENT),
        ("file/below", "new", errno.ENOTDIR),
        ("file", "file/below", errno.ENOTDIR),
    ):
        with fails_with(number):
            os.rename(place / source, place / target)
    assert names(place) == ["file"]


def test_from_and_to_another_file_system(place: Place) -> None:
    make(place / "file")
    with fails_with(errno.EXDEV):
        os.rename(place / "file", "/dev/shm/posix-test-of-rename")
    assert names(place) == ["file"]


def test_a_symlink_itself(place: Place) -> None:
    make(place / "target", b"content")
    os.symlink("target", place / "link")
    os.rename(place / "link", place / "moved")
    assert os.readlink(place / "moved") == "target"
    assert names(place) == ["moved", "target"]


def test_a_file_over_a_symlink_and_back(place: Place) -> None:
    make(place / "target", b"target")
    make(place / "file", b"file")
    os.symlink("target", place / "link")
    os.rename(place / "file", place / "link")
    assert stat.S_ISREG(os.lstat(place / "link").st_mode)
    assert read(place / "link") == b"file"
    assert read(place / "target") == b"target"
    os.symlink("target", place / "again")
    os.rename(place / "again", place / "link")
    assert os.readlink(place / "link") == "target"
    assert names(place) == ["link", "target"]


def test_times(place: Place) -> None:
    make(place / "file", b"content")
    os.mkdir(place / "directory")
    source, target, file = os.stat(place), os.stat(place / "directory"), os.stat(place / "file")
    tick()
    os.rename(place / "file", place / "directory/file")
    assert os.stat(place).st_mtime_ns > source.st_mtime_ns
    assert os.stat(place / "directory").st_mtime_ns > target.st_mtime_ns
    assert os.stat(place / "directory/file").st_mtime_ns == file.st_mtime_ns


def test_noreplace(place: Place) -> None:
    make(place / "one", b"one")
    make(place / "two", b"two")
    os.mkdir(place / "directory")
    os.symlink("nothing", place / "dangling")
    for target in ("two", "directory", "dangling", "one"):
        with fails_with(errno.EEXIST):
            renameat2(place / "one", place / target, RENAME_NOREPLACE)
    renameat2(place / "one", place / "three", RENAME_NOREPLACE)
    assert names(place) == ["dangling", "directory", "three", "two"]
    assert read(place / "three") == b"one"


@pytest.mark.parametrize("flags", [RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE])
def test_a_whiteout_is_left(place: Place, flags: int) -> None:
    """What overlayfs needs of its upper layer: a character device 0/0 in the old place."""
    make(place / "file", b"content")
    os.symlink("somewhere", place / "link")
    os.mkdir(place / "directory")
    make(place / "directory/in", b"in it")
    for name in ("file", "link", "directory"):
        renameat2(place / name, place.path / f"{name}-moved", flags)
        st = os.stat(place / name)
        assert stat.S_ISCHR(st.st_mode)
        assert st.st_rdev == 0
    assert read(place / "file-moved") == b"content"
    assert os.readlink(place / "link-moved") == "somewhere"
    assert read(place / "directory-moved/in") == b"in it"
    with fails_with(errno.ENOENT):
        renameat2(place / "nothing", place / "moved", flags)
    os.rename(place / "file-moved", place / "file")
    assert read(place / "file") == b"content"
    renameat2(place / "directory-moved", place / "directory", RENAME_EXCHANGE)
    assert read(place / "directory/in") == b"in it"
    assert stat.S_ISCHR(os.stat(place / "directory-moved").st_mode)
    for name in ("link", "directory-moved"):
        os.unlink(place / name)
    assert names(place) == ["directory", "file", "link-moved"]


def test_a_whiteout_replaces_nothing_that_must_stay(place: Place) -> None:
    make(place / "one", b"one")
    make(place / "two", b"two")
    with fails_with(errno.EEXIST):
        renameat2(place / "one", place / "two", RENAME_WHITEOUT | RENAME_NOREPLACE)
    with fails_with(errno.EINVAL):
        renameat2(place / "one", place / "two", RENAME_WHITEOUT | RENAME_EXCHANGE)
    assert read(place / "one") == b"one"
    renameat2(place / "one", place / "two", RENAME_WHITEOUT)
    assert read(place / "two") == b"one"
    assert names(place) == ["one", "two"]


def test_exchange_of_files(place: Place) -> None:
    make(place / "one", b"one")
    make(place / "two", b"two, longer")
    inodes = [os.stat(place / name).st_ino for name in ("one", "two")]
    with opened(place / "one", os.O_RDWR) as fd:
        renameat2(place / "one", place / "two", RENAME_EXCHANGE)
        assert [os.stat(place / name).st_ino for name in ("two", "one")] == inodes
        os.pwrite(fd, b"ONE", 0)
    assert read(place / "one") == b"two, longer"
    assert read(place / "two") == b"ONE"
    assert names(place) == ["one", "two"]


def test_exchange_of_a_file_and_a_symlink(place: Place) -> None:
    make(place / "file", b"content")
    os.symlink("somewhere", place / "link")
    renameat2(place / "file", place / "link", RENAME_EXCHANGE)
    assert os.readlink(place / "file") == "somewhere"
    assert read(place / "link") == b"content"


def test_flags_that_are_refused(place: Place) -> None:
    make(place / "one", b"one")
    with fails_with(errno.ENOENT):
        renameat2(place / "one", place / "missing", RENAME_EXCHANGE)
    with fails_with(errno.EINVAL):
        renameat2(place / "one", place / "two", RENAME_EXCHANGE | RENAME_NOREPLACE)
    with fails_with(errno.EINVAL):
        renameat2(place / "one", place / "two", 1 << 7)
    assert names(place) == ["one"]
    assert not exists(place / "two")
