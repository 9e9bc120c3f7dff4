"""Who may do what: each step as a user who is not root."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import UTIME_NOW, UTIME_OMIT, fails_with, make, names, opened, read, utimensat
from tests.posix.places import Place
from tests.posix.processes import EXTRA_GID, LIMIT_S, PLAIN_GID, PLAIN_UID, as_other, as_user


def _owned(path: Path, mode: int, data: bytes = b"content") -> Path:
    make(path, data)
    os.chown(path, PLAIN_UID, PLAIN_GID)
    os.chmod(path, mode)
    return path


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def test_the_maker_owns_the_file(place: Place) -> None:
    as_user(PLAIN_UID, make, place / "file", b"content")
    as_user(PLAIN_UID, os.mkdir, place / "directory")
    as_user(PLAIN_UID, os.symlink, "x", place / "link")
    as_user(PLAIN_UID, os.mkfifo, place / "fifo")
    for name in names(place):
        st = os.lstat(place / name)
        assert (st.st_uid, st.st_gid) == (PLAIN_UID, PLAIN_GID), name
    assert as_user(PLAIN_UID, read, place / "file") == b"content"


@pytest.mark.parametrize(("mode", "flags", "who", "allowed"), [
    (0o600, os.O_RDWR, "owner", True), (0o600, os.O_RDONLY, "group", False), (0o600, os.O_RDONLY, "other", False),
    (0o400, os.O_WRONLY, "owner", False), (0o200, os.O_RDONLY, "owner", False), (0o000, os.O_RDONLY, "owner", False),
    (0o660, os.O_RDWR, "group", True), (0o606, os.O_RDWR, "group", False), (0o066, os.O_RDONLY, "owner", False),
    (0o604, os.O_RDONLY, "other", True), (0o604, os.O_WRONLY, "other", False), (0o602, os.O_WRONLY, "other", True),
    (0o602, os.O_WRONLY | os.O_TRUNC, "other", True), (0o604, os.O_RDONLY | os.O_TRUNC, "other", False),
    (0o000, os.O_RDWR, "root", True),
])  # fmt: skip
def test_open(place: Place, mode: int, flags: int, who: str, allowed: bool) -> None:
    path = _owned(place / "file", mode)
    call: Callable[[], None] = {
        "owner": lambda: as_user(PLAIN_UID, _open, path, flags),
        "group": lambda: as_user(777, _open, path, flags, gid=888, groups=[PLAIN_GID]),
        "other": lambda: as_other(_open, path, flags),
        "root": lambda: _open(path, flags),
    }[who]
    if allowed:
        call()
    else:
        with fails_with(errno.EACCES):
            call()
        assert read(path) == b"content"


def test_truncate_needs_write_permission(place: Place) -> None:
    path = _owned(place / "file", 0o644)
    with fails_with(errno.EACCES):
        as_other(os.truncate, path, 0)
    as_user(PLAIN_UID, os.truncate, path, 3)
    assert read(path) == b"con"


def test_a_directory_without_search_permission(place: Place) -> None:
    os.mkdir(place / "directory")
    make(place / "directory/file", b"content")
    os.chmod(place / "directory", 0o744)
    assert as_other(os.listdir, place / "directory") == ["file"]
    for call in (os.stat, read, os.unlink):
        with fails_with(errno.EACCES):
            as_other(call, place / "directory/file")


def test_a_directory_without_read_permission(place: Place) -> None:
    os.mkdir(place / "directory")
    make(place / "directory/file", b"content")
    os.chmod(place / "directory", 0o711)
    assert as_other(read, place / "directory/file") == b"content"
    with fails_with(errno.EACCES):
        as_other(os.listdir, place / "directory")


@pytest.mark.parametrize("call", [make, os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)],
                         ids=["creat", "mkdir", "mknod", "symlink"])  # fmt: skip
def test_nothing_new_without_write_permission(place: Place, call) -> None:
    os.mkdir(place / "directory", 0o755)
    with fails_with(errno.EACCES):
        as_other(call, place / "directory/new")
    assert names(place / "directory") == []
    os.chmod(place / "directory", 0o757)
    as_other(call, place / "directory/new")
    assert names(place / "directory") == ["new"]


def test_nothing_is_removed_or_renamed_without_write_permission(place: Place) -> None:
    os.makedirs(place / "directory/sub")
    _owned(place / "directory/file", 0o666)
    _owned(place / "mine", 0o666)
    for call, arguments in (
        (os.unlink, ["directory/file"]), (os.rmdir, ["directory/sub"]), (os.rename, ["directory/file", "directory/new"]),
        (os.rename, ["directory/file", "new"]), (os.rename, ["mine", "directory/mine"]),
    ):  # fmt: skip
        with fails_with(errno.EACCES):
            as_user(PLAIN_UID, call, *[place / name for name in arguments])
    assert names(place / "directory") == ["file", "sub"]


def test_whoever_may_write_the_directory_may_remove_others_files(place: Place) -> None:
    _owned(place / "file", 0o600)
    as_other(os.unlink, place / "file")
    assert names(place) == []


def test_sticky_directory(place: Place) -> None:
    """Only owners of the file or the directory remove and rename."""
    os.mkdir(place / "sticky")
    os.chmod(place / "sticky", 0o1777)
    for name in ("one", "two", "three"):
        _owned(place / f"sticky/{name}", 0o666)
    as_other(make, place / "sticky/theirs")
    for call in (
        lambda: as_other(os.unlink, place / "sticky/one"),
        lambda: as_other(os.rename, place / "sticky/one", place / "sticky/new"),
        lambda: as_other(os.rename, place / "sticky/theirs", place / "sticky/one"),
        lambda: as_other(os.rename, place / "sticky/one", place / "one"),
    ):
        with fails_with(errno.EPERM):
            call()
    as_user(PLAIN_UID, os.unlink, place / "sticky/one")
    as_user(PLAIN_UID, os.rename, place / "sticky/two", place / "sticky/new")
    os.chown(place / "sticky", 65534, 65534)
    as_other(os.unlink, place / "sticky/three")
    assert names(place / "sticky") == ["new", "theirs"]


def test_chmod_by_another(place: Place) -> None:
    path = _owned(place / "file", 0o666)
    with fails_with(errno.EPERM):
        as_other(os.chmod, path, 0o777)

    def by_descriptor() -> None:
        with opened(path, os.O_RDWR) as fd:
            os.fchmod(fd, 0o777)

    with fails_with(errno.EPERM):
        as_other(by_descriptor)
    as_user(PLAIN_UID, os.chmod, path, 0o600)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_chown_by_others_than_root(place: Place) -> None:
    path = _owned(place / "file", 0o666)
    for call in (
        lambda: as_other(os.chown, path, 65534, -1),
        lambda: as_other(os.chown, path, -1, 65534),
        lambda: as_user(PLAIN_UID, os.chown, path, 65534, -1),
        lambda: as_user(PLAIN_UID, os.chown, path, -1, EXTRA_GID),
    ):
        with fails_with(errno.EPERM):
            call()
    as_user(PLAIN_UID, os.chown, path, PLAIN_UID, -1)
    as_user(PLAIN_UID, os.chown, path, -1, EXTRA_GID, groups=[EXTRA_GID])
    st = os.stat(path)
    assert (st.st_uid, st.st_gid) == (PLAIN_UID, EXTRA_GID)


def test_utime_by_another(place: Place) -> None:
    """Now with write permission, other times only by the owner."""
    path = _owned(place / "file", 0o666)
    as_other(os.utime, path)
    with fails_with(errno.EPERM):
        as_other(os.utime, path, (1, 1))
    with fails_with(errno.EPERM):
        as_other(utimensat, path, (0, UTIME_NOW), (0, UTIME_OMIT))
    as_user(PLAIN_UID, os.utime, path, (1, 1))
    os.chmod(path, 0o644)
    with fails_with(errno.EACCES):
        as_other(os.utime, path)


def test_access(place: Place) -> None:
    path = _owned(place / "file", 0o640)
    assert as_user(PLAIN_UID, os.access, path, os.R_OK | os.W_OK)
    assert not as_user(PLAIN_UID, os.access, path, os.X_OK)
    assert as_user(777, os.access, path, os.R_OK, gid=PLAIN_GID)
    assert not as_user(777, os.access, path, os.W_OK, gid=PLAIN_GID)
    assert not as_other(os.access, path, os.R_OK)
    assert as_other(os.access, path, os.F_OK)
    assert os.access(path, os.R_OK | os.W_OK)
    assert not os.access(path, os.X_OK)
    os.chmod(path, 0o100)
    assert os.access(path, os.X_OK)
    assert not os.access(place / "missing", os.F_OK)


def test_permission_is_asked_for_at_open_only(place: Place) -> None:
    path = _owned(place / "file", 0o600)

    def use_it() -> bytes:
        with opened(path, os.O_RDWR) as fd:
            os.fchmod(fd, 0)
            os.pwrite(fd, b"CON", 0)
            return os.pread(fd, 10, 0)

    assert as_user(PLAIN_UID, use_it) == b"CONtent"
    with fails_with(errno.EACCES):
        as_user(PLAIN_UID, read, path)


def test_a_change_applies_at_once(place: Place) -> None:
    path = _owned(place / "file", 0o600)
    for _ in range(3):
        with fails_with(errno.EACCES):
            as_other(read, path)
        os.chmod(path, 0o604)
        assert as_other(read, path) == b"content"
        os.chmod(path, 0o600)


def test_noatime_is_the_owners(place: Place) -> None:
    path = _owned(place / "file", 0o666)
    as_user(PLAIN_UID, _open, path, os.O_RDONLY | os.O_NOATIME)
    with fails_with(errno.EPERM):
        as_other(_open, path, os.O_RDONLY | os.O_NOATIME)


def test_programs_run_with_permission_only(place: Place) -> None:
    make(place / "program", b"#!/bin/sh\nexit 42\n", 0o755)

    def run() -> int:
        return subprocess.run([place / "program"], timeout=LIMIT_S, check=False).returncode

    assert run() == 42
    assert as_other(run) == 42
    os.chmod(place / "program", 0o744)
    assert run() == 42
    with fails_with(errno.EACCES):
        as_other(run)
    os.chmod(place / "program", 0o644)
    with fails_with(errno.EACCES):
        run()


def test_rename_over_anothers_file(place: Place) -> None:
    """What counts is the directory, not the file."""
    _owned(place / "theirs", 0o600)
    as_other(make, place / "mine", b"mine")
    as_other(os.rename, place / "mine", place / "theirs")
    assert read(place / "theirs") == b"mine"
    assert os.stat(place / "theirs").st_uid == 65534
