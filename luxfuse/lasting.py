"""Descriptors that outlive a daemon: locked files, which one daemon at a time has, and sockets that others know.

A lock of flock(2) belongs to an open file, not to a process, and so does a port. The keeper is told of each, and has it
open, too: the file stays locked when the daemon dies, and the successor inherits it, even from a daemon that cannot end.
Whatever is locked must be given back (`unlock`): closing it alone would leave it to the keeper. What fails does not know
whether a successor comes, and sets its locks aside (`set_aside`), for itself or for that: nobody else takes them between.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from luxfuse.keeper import saying

_left: dict[str, int] = {}  # one for the process, as its descriptors are


def inherit(held: Iterable[str]) -> None:
    """Take up what the keeper holds: ``FD=NAME`` each."""
    for text in held:
        fd, _, name = text.partition("=")
        os.set_inheritable(int(fd), False)
        _left[name] = int(fd)


def take(name: str) -> int | None:
    """Return the descriptor that the daemon before has kept by a name, which is the caller's from now on; None: none."""
    return _left.pop(name, None)


def is_left(name: str) -> bool:
    """Whether there is one by a name to be taken."""
    return name in _left


def keep(name: str, fd: int) -> None:
    """Have a descriptor held for the next daemon."""
    saying.hold(name, fd)


def lock(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int | None:
    """Open a file or directory and lock it; returns the descriptor, None if another daemon has it. Raises OSError."""
    fd = take(str(path))
    if fd is not None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it may have been given back when the keeper was dead
                return fd
        unlock(path, fd)  # there is another one in its place, or another daemon has it
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        fd = _open_read_only(path, exc)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    keep(str(path), fd)
    return fd


def _open_read_only(path: Path, refused: OSError) -> int:
    """Open a file for its lock alone, on a file system that has become read-only. Raises ``refused`` if there is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise refused from None


def unlock(path: Path, fd: int) -> None:
    """Give a lock back, and close the descriptor. Another one that was taken by this path meanwhile would be lost."""
    with contextlib.suppress(OSError):  # it is no file, but a socket
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
    saying.drop(str(path))


def set_aside(path: Path, fd: int) -> None:
    """Let go of a lock that stays locked, for the next who asks for it, here or in a successor."""
    before = _left.pop(str(path), None)
    _left[str(path)] = fd
    if before is not None:
        os.close(before)


def give_back_the_rest() -> None:
    """Give back what was inherited and not taken, or set aside: this daemon has no use for it."""
    while _left:
        name, fd = _left.popitem()
        unlock(Path(name), fd)
