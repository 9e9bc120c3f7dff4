"""Which times each call moves: of the file that it is about, and of the directory that the file is in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.calls import UTIME_OMIT, make, now_ns, opened, tick, utimensat
from tests.posix.places import Place

CONTENT = b"0123456789" * 500


def moved(before: os.stat_result, after: os.stat_result) -> str:
    """Return the first letters of the times that differ."""
    pairs = {
        "a": (before.st_atime_ns, after.st_atime_ns),
        "m": (before.st_mtime_ns, after.st_mtime_ns),
        "c": (before.st_ctime_ns, after.st_ctime_ns),
    }
    for name, (old, new) in pairs.items():
        assert new >= old or name != "c", "ctime went back"
    return "".join(name for name, (old, new) in pairs.items() if old != new)


def write_at(path: Path, offset: int) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.pwrite(fd, b"new", offset)


def open_and_close(path: Path, flags: int) -> None:
    with opened(path, flags):
        pass


def fallocate(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 3 * len(CONTENT))


FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "write": (lambda f: write_at(f, 10), "mc"),
    "append": (lambda f: write_at(f, len(CONTENT)), "mc"),
    "open with O_TRUNC": (lambda f: open_and_close(f, os.O_WRONLY | os.O_TRUNC), "mc"),
    "open for writing": (lambda f: open_and_close(f, os.O_RDWR), ""),
    "open for reading": (lambda f: open_and_close(f, os.O_RDONLY), ""),
    "truncate to less": (lambda f: os.truncate(f, 10), "mc"),
    "truncate to more": (lambda f: os.truncate(f, 10_000), "mc"),
    "fallocate": (fallocate, "mc"),
    "chmod": (lambda f: f.chmod(0o600), "c"),
    "chown": (lambda f: os.chown(f, 12, 13), "c"),
    "setxattr": (lambda f: os.setxattr(f, "user.new", b"value"), "c"),
    "removexattr": (lambda f: os.removexattr(f, "user.old"), "c"),
    "utimensat of atime": (lambda f: utimensat(f, (5, 6), (0, UTIME_OMIT)), "ac"),
    "utimensat of mtime": (lambda f: utimensat(f, (0, UTIME_OMIT), (5, 6)), "mc"),
    "stat": (lambda f: os.getxattr(f, "user.old"), ""),
}


STATES = ["closed", "open", "written"]
"""Of a file when a call is made."""


@pytest.mark.parametrize("state", STATES)
def test_of_a_file(place: Place, state: str) -> None:
    descriptors, found = {}, {}
    for call in FILE:
        path = place / call
        make(path, CONTENT)
        os.setxattr(path, "user.old", b"value")
        if state != "closed":
            descriptors[call] = os.open(path, os.O_RDWR)
        if state == "written":
            os.pwrite(descriptors[call], b"change", 100)
    tick()
    above = place.path.stat()
    for call, (act, _) in FILE.items():
        before = (place / call).stat()
        tick()
        act(place / call)
        after = (place / call).stat()
        found[call] = moved(before, after)
        if call in descriptors:
            os.close(descriptors[call])
            tick()
            found[f"close after {call}"] = moved(after, (place / call).stat())
    wanted = {call: times for call, (_, times) in FILE.items()}
    assert found == {**wanted, **{f"close after {call}": "" for call in descriptors}}
    assert moved(above, place.path.stat()) == ""


@pytest.mark.parametrize("state", STATES)
def test_rename(place: Place, state: str) -> None:
    os.mkdir(place / "to")
    make(place / "file", CONTENT)
    if state == "closed":
        make(place / "to/file", b"old")
    fd = os.open(place / "file", os.O_RDWR) if state != "closed" else -1
    if state == "written":
        os.pwrite(fd, b"change", 100)
    tick()
    before, above, to = (os.stat(place / name) for name in ("file", ".", "to"))
    tick()
    os.rename(place / "file", place / "to/file")
    after = os.stat(place / "to/file")
    assert moved(before, after) == "c"
    assert moved(above, os.stat(place)) == "mc"
    assert moved(to, os.stat(place / "to")) == "mc"
    if fd >= 0:
        os.close(fd)
        tick()
        assert moved(after, os.stat(place / "to/file")) == ""


def test_rename_of_other_kinds(place: Place) -> None:
    os.mkdir(place / "directory")
    os.symlink("target", place / "symlink")
    os.mkfifo(place / "fifo")
    os.mkdir(place / "to")
    kinds = ["directory", "symlink", "fifo"]
    before = [os.lstat(place / kind) for kind in kinds]
    tick()
    for kind in kinds:
        os.rename(place / kind, place / "to" / kind)
    assert [moved(old, os.lstat(place / "to" / kind)) for old, kind in zip(before, kinds, strict=True)] == ["c"] * 3


CHILDREN: dict[str, Callable[[Path], object]] = {
    "create": lambda d: make(d / "new", b"content"),
    "mkdir": lambda d: (d / "new").mkdir(),
    "symlink": lambda d: (d / "new").symlink_to("target"),
    "mknod": lambda d: os.mknod(d / "new"),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "unlink": lambda d: (d / "file").unlink(),
    "rmdir": lambda d: (d / "directory").rmdir(),
    "rename": lambda d: (d / "file").rename(d / "new"),
}


DIRECTORY: dict[str, Callable[[Path], object]] = {
    "chmod": lambda d: d.chmod(0o700),
    "chown": lambda d: os.chown(d, 12, 13),
    "setxattr": lambda d: os.setxattr(d, "user.new", b"value"),
}


def test_of_a_directory(place: Place) -> None:
    """When its entries change, and when it is described."""
    found = {}
    for call, act in {**CHILDREN, **DIRECTORY}.items():
        directory = place / call
        directory.mkdir()
        make(directory / "file", CONTENT)
        (directory / "directory").mkdir()
        before = directory.stat()
        tick()
        act(directory)
        found[call] = moved(before, directory.stat())
    assert found == {**dict.fromkeys(CHILDREN, "mc"), **dict.fromkeys(DIRECTORY, "c")}


NEW: dict[str, Callable[[Path], object]] = {
    "create": lambda p: p.touch(),
    "create for reading": lambda p: os.close(os.open(p, os.O_CREAT | os.O_RDONLY)),
    "mknod": os.mknod,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "symlink": lambda p: p.symlink_to("target"),
}


def test_of_what_is_new(place: Place) -> None:
    """All three are the time at which it was made, also if a file that had been prepared is used for it."""
    for call, act in NEW.items():
        tick()
        before_ns = now_ns()
        act(place / call)
        st = (place / call).lstat()
        times = [st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns]
        assert all(before_ns <= stamp <= time.time_ns() for stamp in times), (call, before_ns, times)
