"""The set-user-ID and set-group-ID bits: who loses them, and when."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.posix.calls import make, opened, read
from tests.posix.places import Place
from tests.posix.processes import EXTRA_GID, PLAIN_GID, PLAIN_UID, as_other, as_user


def _owned(path: Path, mode: int) -> Path:
    make(path, b"content" * 1000)
    os.chown(path, PLAIN_UID, PLAIN_GID)
    os.chmod(path, mode)
    assert _mode(path) == mode
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _write(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"x")


def _ftruncate(path: Path) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, 3)


def _truncate(path: Path) -> None:
    os.truncate(path, 3)


def _open_trunc(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


CHANGES = [_write, _ftruncate, _truncate, _open_trunc]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("before", "after"), [(0o4777, 0o777), (0o6777, 0o777), (0o2777, 0o777), (0o4666, 0o666)])
def test_a_change_by_another_clears(place: Place, change, before: int, after: int) -> None:
    path = _owned(place / "file", before)
    as_other(change, path)
    assert _mode(path) == after


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_the_owner_clears(place: Place, change) -> None:
    path = _owned(place / "file", 0o6755)
    as_user(PLAIN_UID, change, path)
    assert _mode(path) == 0o755


@pytest.mark.parametrize("change", [_write, _truncate])
def test_a_change_by_root_does_not(place: Place, change) -> None:
    path = _owned(place / "file", 0o6755)
    change(path)
    assert _mode(path) == 0o6755


def test_each_write_clears_again(place: Place) -> None:
    """Also those after the first, through one descriptor."""
    path = _owned(place / "file", 0o4777)

    def write_twice() -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.write(fd, b"one")
            assert _mode(path) == 0o777
            os.chmod(path, 0o4777)
            os.write(fd, b"two")
            assert _mode(path) == 0o777

    as_user(PLAIN_UID, write_twice)
    assert read(path).startswith(b"onetwo")


def test_reading_clears_nothing(place: Place) -> None:
    path = _owned(place / "file", 0o6755)
    as_other(read, path)
    as_user(PLAIN_UID, read, path)
    assert _mode(path) == 0o6755


def test_opening_for_writing_clears_nothing(place: Place) -> None:
    """But in passthrough, where writes are not seen: there it may clear already."""
    path = _owned(place / "file", 0o6755)
    as_user(PLAIN_UID, lambda: os.close(os.open(path, os.O_RDWR)))
    assert _mode(path) in ((0o6755, 0o755) if place.kind == "passthrough" else (0o6755,))
    os.chmod(path, 0o6755)
    os.close(os.open(path, os.O_RDWR))
    assert _mode(path) == 0o6755


def test_chown_clears(place: Place) -> None:
    path = _owned(place / "file", 0o6755)
    as_user(PLAIN_UID, os.chown, path, -1, EXTRA_GID, groups=[EXTRA_GID])
    assert _mode(path) == 0o755
    os.chmod(path, 0o6755)
    os.chown(path, 7, 8)  # Linux: by root too
    assert _mode(path) == 0o755


def test_chown_of_a_directory_does_not(place: Place) -> None:
    os.mkdir(place / "directory")
    os.chmod(place / "directory", 0o2775)
    os.chown(place / "directory", 7, 8)
    assert _mode(place / "directory") == 0o2775


def test_setgid_of_a_foreign_group_is_dropped(place: Place) -> None:
    path = _owned(place / "file", 0o755)
    os.chown(path, PLAIN_UID, EXTRA_GID)
    as_user(PLAIN_UID, os.chmod, path, 0o2755)
    assert _mode(path) == 0o755
    as_user(PLAIN_UID, os.chmod, path, 0o2755, groups=[EXTRA_GID])
    assert _mode(path) == 0o2755


def test_creat_with_the_bits(place: Place) -> None:
    def create() -> None:
        os.umask(0)
        os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY, 0o6755))

    as_user(PLAIN_UID, create)
    assert _mode(place / "file") == 0o6755


def test_creat_in_a_setgid_directory_of_a_foreign_group(place: Place) -> None:
    """Linux: no set-group-ID file by who is not in the group."""
    os.mkdir(place / "directory")
    os.chown(place / "directory", 0, EXTRA_GID)
    os.chmod(place / "directory", 0o2777)

    def create() -> None:
        os.umask(0)
        os.close(os.open(place / "directory/file", os.O_CREAT | os.O_WRONLY, 0o2775))

    as_user(PLAIN_UID, create)
    st = os.stat(place / "directory/file")
    assert (st.st_gid, stat.S_IMODE(st.st_mode)) == (EXTRA_GID, 0o775)
