"""Symlinks, and hard links, which the mounts refuse."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.calls import exists, fails_with, make, names, opened, read, tick, write_all
from tests.posix.places import Place


@pytest.mark.parametrize(
    "target", ["file", "directory/file", "../sibling", "/absolute/path", ".", "/", "with space\n", "né", "x//y/../z"]
)
def test_readlink_gives_what_was_stored(place: Place, target: str) -> None:
    os.symlink(target, place / "link")
    st = os.lstat(place / "link")
    assert stat.S_ISLNK(st.st_mode)
    assert os.readlink(place / "link") == target
    assert st.st_size == len(target.encode())
    assert names(place) == ["link"]


def test_a_target_that_is_not_utf8(place: Place) -> None:
    path = os.fsencode(place.path) + b"/link"
    os.symlink(b"bad-\xff\xfe", path)
    assert os.readlink(path) == b"bad-\xff\xfe"
    assert os.lstat(path).st_size == 6


@pytest.mark.parametrize("length", [1, 59, 60, 61, 255, 1000, 4094, 4095])
def test_long_targets(place: Place, length: int) -> None:
    target = ("x" * 99 + "/") * 41
    os.symlink(target[:length], place / "link")
    assert os.readlink(place / "link") == target[:length]
    assert os.lstat(place / "link").st_size == length


def test_targets_that_are_too_long(place: Place) -> None:
    with fails_with(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, place / "link")
    assert names(place) == []


def test_the_mode_of_a_symlink_is_all(place: Place) -> None:
    os.umask(0o077)
    os.symlink("target", place / "link")
    assert stat.S_IMODE(os.lstat(place / "link").st_mode) == 0o777


def test_followed(place: Place) -> None:
    os.mkdir(place / "directory")
    make(place / "directory/file", b"content")
    os.symlink("directory/file", place / "relative")
    os.symlink(place / "directory/file", place / "absolute")
    os.symlink("directory", place / "to-directory")
    os.symlink("relative", place / "to-link")
    for path in ("relative", "absolute", "to-directory/file", "to-link"):
        assert read(place / path) == b"content"
        assert os.stat(place / path).st_ino == os.stat(place / "directory/file").st_ino
    assert names(place / "to-directory") == ["file"]


def test_written_through(place: Place) -> None:
    make(place / "file", b"content")
    os.symlink("file", place / "link")
    with opened(place / "link", os.O_WRONLY | os.O_TRUNC) as fd:
        write_all(fd, b"new")
    assert read(place / "file") == b"new"
    assert os.readlink(place / "link") == "file"


def test_dangling(place: Place) -> None:
    os.symlink("nothing", place / "link")
    assert exists(place / "link")
    for call in (os.stat, read, os.listdir):
        with fails_with(errno.ENOENT):
            call(place / "link")
    make(place / "nothing", b"now there")
    assert read(place / "link") == b"now there"


def test_loops(place: Place) -> None:
    os.symlink("two", place / "one")
    os.symlink("one", place / "two")
    os.symlink("self", place / "self")
    for path in ("one", "self", "self/below"):
        with fails_with(errno.ELOOP):
            os.stat(place / path)
        with fails_with(errno.ELOOP):
            os.open(place / path, os.O_CREAT | os.O_WRONLY)


def test_a_chain_of_forty_is_followed_and_more_are_not(place: Place) -> None:
    make(place / "0", b"content")
    for i in range(1, 42):
        os.symlink(f"{i - 1}", place / f"{i}")
    assert read(place / "40") == b"content"
    with fails_with(errno.ELOOP):
        os.stat(place / "41")


@pytest.mark.parametrize("what", ["file", "directory", "dangling"])
def test_a_name_that_exists(place: Place, what: str) -> None:
    make(place / "file")
    os.mkdir(place / "directory")
    os.symlink("nothing", place / "dangling")
    with fails_with(errno.EEXIST):
        os.symlink("target", place / what)
    with fails_with(errno.ENOENT):
        os.symlink("target", place / "missing/link")
    with fails_with(errno.ENOTDIR):
        os.symlink("target", place / "file/link")


def test_what_is_no_link(place: Place) -> None:
    make(place / "file")
    for path in (place / "file", place.path):
        with fails_with(errno.EINVAL):
            os.readlink(path)
    with fails_with(errno.ENOENT):
        os.readlink(place / "missing")
    with fails_with(errno.ENOTDIR):
        os.readlink(place / "file/below")


def test_owner_and_times_of_a_link_itself(place: Place) -> None:
    make(place / "file")
    os.symlink("file", place / "link")
    file = os.stat(place / "file")
    os.lchown(place / "link", 7, 8)
    os.utime(place / "link", ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    st = os.lstat(place / "link")
    assert (st.st_uid, st.st_gid, st.st_mtime_ns) == (7, 8, 10**18 + 2)
    after = os.stat(place / "file")
    assert (after.st_uid, after.st_mtime_ns) == (file.st_uid, file.st_mtime_ns)


def test_replaced_by_a_new_one(place: Place) -> None:
    """How "current" links are moved."""
    os.symlink("one", place / "current")
    for target in ("two", "three, longer"):
        os.symlink(target, place / "new")
        os.rename(place / "new", place / "current")
        assert os.readlink(place / "current") == target
        assert os.lstat(place / "current").st_size == len(target)
    os.unlink(place / "current")
    os.symlink("four", place / "current")
    assert os.readlink(place / "current") == "four"
    assert names(place) == ["current"]


def test_hard_links(place: Place) -> None:
    """By choice not on the mounts: an object has one key."""
    make(place / "file", b"content")
    if place.on_mount:
        with fails_with(errno.EPERM):
            os.link(place / "file", place / "other")
        assert names(place) == ["file"]
        assert os.stat(place / "file").st_nlink == 1
        return
    before = os.stat(place / "file")
    tick()
    os.link(place / "file", place / "other")
    st = os.stat(place / "other")
    assert (st.st_ino, st.st_nlink) == (before.st_ino, 2)
    assert st.st_ctime_ns > before.st_ctime_ns
    os.unlink(place / "file")
    assert read(place / "other") == b"content"


def test_hard_links_that_nobody_has(place: Place) -> None:
    make(place / "file")
    os.mkdir(place / "directory")
    with fails_with(errno.EPERM):
        os.link(place / "directory", place / "other")
    with fails_with(errno.EEXIST):
        os.link(place / "file", place / "directory")
    with fails_with(errno.ENOENT):
        os.link(place / "missing", place / "other")
    assert names(place) == ["directory", "file"]
