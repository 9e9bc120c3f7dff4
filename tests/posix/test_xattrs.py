"""Extended attributes of the user."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from tests.posix.calls import fails_with, make, names, opened, read, tick, unless_refused
from tests.posix.places import Place
from tests.posix.processes import as_other

_libc = ctypes.CDLL(None, use_errno=True)


def _listed(path: Path | int) -> list[str]:
    return sorted(name for name in os.listxattr(path) if not name.startswith("security."))


def _short_get(path: Path, name: str, size: int) -> int:
    """getxattr with a buffer of this size, which Python's never has too small; returns its errno, 0 if none."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    result = _libc.getxattr(os.fsencode(path), name.encode(), buffer, ctypes.c_size_t(size))
    return ctypes.get_errno() if result < 0 else 0


@pytest.fixture(params=["file", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of what the attributes are."""
    return request.param


def _make(place: Place, kind: str) -> Path:
    path = place / "it"
    make(path, b"content") if kind == "file" else os.mkdir(path)
    return path


def test_set_get_list_remove(place: Place, kind: str) -> None:
    path = _make(place, kind)
    assert _listed(path) == []
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "user.two", b"second value")
    assert os.getxattr(path, "user.one") == b"1"
    assert os.getxattr(path, "user.two") == b"second value"
    assert _listed(path) == ["user.one", "user.two"]
    os.setxattr(path, "user.one", b"longer than before")
    assert os.getxattr(path, "user.one") == b"longer than before"
    os.removexattr(path, "user.one")
    assert _listed(path) == ["user.two"]
    with fails_with(errno.ENODATA):
        os.getxattr(path, "user.one")


def test_create_and_replace(place: Place, kind: str) -> None:
    path = _make(place, kind)
    with fails_with(errno.ENODATA):
        os.setxattr(path, "user.name", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.name", b"2", os.XATTR_CREATE)
    with fails_with(errno.EEXIST):
        os.setxattr(path, "user.name", b"3", os.XATTR_CREATE)
    assert os.getxattr(path, "user.name") == b"2"
    os.setxattr(path, "user.name", b"4", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.name") == b"4"


def test_what_is_missing(place: Place) -> None:
    make(place / "file")
    for call in (os.getxattr, os.removexattr):
        with fails_with(errno.ENODATA):
            call(place / "file", "user.none")
        with fails_with(errno.ENOENT):
            call(place / "missing", "user.none")
    with fails_with(errno.ENOENT):
        os.setxattr(place / "missing", "user.name", b"")


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\1\2\xff\xfe", b"a=b&c%20\r\n\t", "né 日本".encode(), bytes(range(256))])
def test_values_are_any_bytes(place: Place, value: bytes) -> None:
    make(place / "file")
    os.setxattr(place / "file", "user.name", value)
    assert os.getxattr(place / "file", "user.name") == value


@pytest.mark.parametrize(
    "name", ["user.with space", "user.né", "user.UPPER", "user.upper", "user.a.b-c_d", "user." + "x" * 250]
)
def test_names(place: Place, name: str) -> None:
    make(place / "file")
    os.setxattr(place / "file", name, b"value")
    assert os.getxattr(place / "file", name) == b"value"
    assert _listed(place / "file") == [name]


def test_names_that_differ_in_case_are_different(place: Place) -> None:
    make(place / "file")
    os.setxattr(place / "file", "user.name", b"lower")
    os.setxattr(place / "file", "user.NAME", b"upper")
    assert os.getxattr(place / "file", "user.name") == b"lower"
    assert os.getxattr(place / "file", "user.NAME") == b"upper"


def test_a_name_that_is_too_long(place: Place) -> None:
    make(place / "file")
    with fails_with(errno.ERANGE):
        os.setxattr(place / "file", "user." + "x" * 251, b"value")


@pytest.mark.parametrize("size", [1000, 3900])
def test_large_values(place: Place, size: int) -> None:
    """ext4 has room for one block; a mount may have less than 4 KiB and must say so."""
    make(place / "file")
    value = os.urandom(size)
    refusals = (errno.ENOSPC, errno.E2BIG) if size > 1000 else ()
    done = unless_refused(lambda: os.setxattr(place / "file", "user.large", value) or True, *refusals)
    if done:
        assert os.getxattr(place / "file", "user.large") == value
        make(place / "another")
    else:
        assert place.on_mount
        assert _listed(place / "file") == []


def test_values_that_are_too_large(place: Place) -> None:
    make(place / "file", b"content")
    with fails_with(errno.E2BIG):
        os.setxattr(place / "file", "user.large", bytes(65_537))
    with fails_with(errno.ENOSPC, errno.E2BIG):
        for i in range(40):  # no file system has room for all
            os.setxattr(place / "file", f"user.large-{i}", bytes(65_536))
    os.setxattr(place / "file", "user.small", b"value")
    assert os.getxattr(place / "file", "user.small") == b"value"
    assert read(place / "file") == b"content"


def test_buffers_that_are_too_small(place: Place) -> None:
    make(place / "file")
    os.setxattr(place / "file", "user.name", b"0123456789")
    assert _short_get(place / "file", "user.name", 5) == errno.ERANGE
    assert _short_get(place / "file", "user.name", 10) == 0
    assert _short_get(place / "file", "user.name", 0) == 0  # asks for the size
    buffer = ctypes.create_string_buffer(3)
    assert _libc.listxattr(os.fsencode(place / "file"), buffer, ctypes.c_size_t(3)) == -1
    assert ctypes.get_errno() == errno.ERANGE


def test_through_descriptors_of_a_file_being_written(place: Place) -> None:
    with opened(place / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"content")
        os.setxattr(fd, "user.name", b"value")
        assert os.getxattr(place / "file", "user.name") == b"value"
        assert _listed(fd) == ["user.name"]
        os.write(fd, b" more")
    assert os.getxattr(place / "file", "user.name") == b"value"
    assert read(place / "file") == b"content more"


def test_they_stay_when_the_file_is_renamed_and_written(place: Place, kind: str) -> None:
    path = _make(place, kind)
    os.setxattr(path, "user.name", b"value")
    os.rename(path, place / "renamed")
    assert os.getxattr(place / "renamed", "user.name") == b"value"
    if kind == "file":
        with opened(place / "renamed", os.O_WRONLY | os.O_TRUNC) as fd:
            os.write(fd, b"new")
    else:
        make(place / "renamed/file")
    assert os.getxattr(place / "renamed", "user.name") == b"value"
    assert _listed(place / "renamed") == ["user.name"]


def test_a_new_file_of_the_name_has_none(place: Place, kind: str) -> None:
    path = _make(place, kind)
    os.setxattr(path, "user.name", b"value")
    os.unlink(path) if kind == "file" else os.rmdir(path)
    _make(place, kind)
    assert _listed(path) == []


def test_ctime(place: Place) -> None:
    make(place / "file")
    before = os.stat(place / "file")
    tick()
    os.setxattr(place / "file", "user.name", b"value")
    after = os.stat(place / "file")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns


def test_symlinks_and_fifos_have_none_of_the_user(place: Place) -> None:
    make(place / "file")
    os.symlink("file", place / "link")
    os.mkfifo(place / "fifo")
    with fails_with(errno.EPERM):
        os.setxattr(place / "link", "user.name", b"value", follow_symlinks=False)
    with fails_with(errno.EPERM):
        os.setxattr(place / "fifo", "user.name", b"value")
    os.setxattr(place / "link", "user.name", b"value")
    assert os.getxattr(place / "file", "user.name") == b"value"


def test_permissions(place: Place) -> None:
    make(place / "file", mode=0o644)
    os.setxattr(place / "file", "user.name", b"value")
    assert as_other(os.getxattr, place / "file", "user.name") == b"value"
    for call in (
        lambda: as_other(os.setxattr, place / "file", "user.name", b"x"),
        lambda: as_other(os.removexattr, place / "file", "user.name"),
    ):
        with fails_with(errno.EACCES):
            call()
    os.chmod(place / "file", 0o600)
    with fails_with(errno.EACCES):
        as_other(os.getxattr, place / "file", "user.name")


def test_other_namespaces_work_or_are_refused(place: Place) -> None:
    make(place / "file")
    refusals = (errno.EOPNOTSUPP, errno.EPERM) if place.on_mount else ()
    if unless_refused(lambda: os.setxattr(place / "file", "trusted.name", b"value") or True, *refusals):
        assert os.getxattr(place / "file", "trusted.name") == b"value"
    for name in ("nonsense.name", "name"):
        with fails_with(errno.EOPNOTSUPP):
            os.setxattr(place / "file", name, b"value")


def test_the_names_of_the_mount_are_not_set(place: Place) -> None:
    make(place / "file")
    if place.on_mount:
        with fails_with(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
            os.setxattr(place / "file", "user.luxfuse.state", b"value")
        with fails_with(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
            os.removexattr(place / "file", "user.luxfuse.state")
    assert names(place) == ["file"]
