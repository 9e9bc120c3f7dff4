"""Files that one daemon at a time holds locked, and its successor after it without a gap.

A lock of flock(2) belongs to an open file, not to a process. So the keeper is told of each, and has it open, too: it stays
locked when the daemon dies, and the successor inherits it, even from a daemon that cannot end. Whatever is locked must be
given back (`free`): closing it alone would leave it to the keeper.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from luxfuse.keeper import saying

_inherited: dict[str, int] = {}  # one for the process, as its descriptors are


def inherit(held: Iterable[str]) -> None:
    """Take up what the keeper holds: ``FD=PATH`` each."""
    for text in held:
        fd, _, path = text.partition("=")
        os.set_inheritable(int(fd), False)
        _inherited[path] = int(fd)


def take(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int | None:
    """Open a file or directory and lock it; returns the descriptor, None if another daemon has it. Raises OSError."""
    fd = _inherited.pop(str(path), None)
    if fd is not None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        free(path, fd)  # there is another one in its place
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    saying.hold(str(path), fd)
    return fd


def free(path: Path, fd: int) -> None:
    """Give a lock back, and close the descriptor. Another one that was taken by this path meanwhile would be lost."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
    saying.drop(str(path))


def free_the_rest() -> None:
    """Give back what was inherited and not taken: this daemon has no use for it."""
    while _inherited:
        path, fd = _inherited.popitem()
        free(Path(path), fd)
