"""The daemon's end of the link to its keeper; without a keeper, nobody is told, but systemd of what is for it.

Nothing here waits: a keeper that has died, or was stopped for long, is not told.
"""

from __future__ import annotations

import array
import os
import select
import socket
import threading
import time
from collections.abc import Sequence

from luxfuse.keeper import systemd

_ours: socket.socket | None = None  # one for the process, as its descriptors are


def connect(fd: int) -> None:
    """Talk to the keeper at this descriptor from now on.

    It is told of a thread that does nothing: when that has ended, this process is being killed, though others of its
    threads may be stuck in the kernel.
    """
    global _ours  # noqa: PLW0603 (as above)
    _ours = socket.socket(fileno=fd)
    _ours.set_inheritable(False)
    witness = threading.Thread(target=threading.Event().wait, name="witness", daemon=True)
    witness.start()
    _send(f"witness {witness.native_id}")


def hold(path: str, fd: int) -> None:
    """Have a descriptor held for the next daemon, by a path, instead of what is held by it now."""
    _send(f"hold {path}", fd)


def drop(path: str) -> None:
    """Nothing is to be held by this path any more."""
    _send(f"drop {path}")


def mounted(number: str) -> None:
    """The mount has a device of this number (major:minor)."""
    _send(f"mounted {number}")


def goes_on() -> None:
    """This process gets on with its beginning."""
    _send("goes-on")


def is_stuck() -> bool:
    """This process cannot go on; a keeper ends it, unless it is told too late to be sure. Returns whether it is told."""
    return _send(f"stuck {time.monotonic_ns() // 1_000_000}")


def next_is(keeper: Sequence[str], daemon: Sequence[str]) -> bool:
    """These commands, of a keeper and its daemon, go on once this process has ended with `HANDED_OVER`.

    Returns whether the keeper is told.
    """
    return _send("next " + "\0".join((str(len(keeper)), *keeper, *daemon)))


def is_heard() -> bool:
    """Whether there is a keeper, and it lives."""
    if _ours is None:
        return False
    poll = select.poll()
    poll.register(_ours, 0)
    return not poll.poll(0)  # POLLHUP: its end is closed


def notify(state: str) -> None:
    """Tell systemd, which listens to the process that it started."""
    if _ours is None:
        systemd.notify(state)
    else:
        _send(f"notify {state}")


def _send(message: str, fd: int | None = None) -> bool:
    if _ours is None:
        return False
    sent = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        _ours.sendmsg([os.fsencode(message)], sent, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True
