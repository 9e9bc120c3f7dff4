"""What the threads of this process wait for inside the kernel, from ``/proc``.

Where the kernel does not say, they are taken to wait for a disk: nothing is ended for what nobody knows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_TASKS = Path("/proc/self/task")
_WAITS = {
    # futex, nanosleep, clock_nanosleep, poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2, accept,
    # accept4, connect, recvfrom, recvmsg, sendto, sendmsg, wait4, waitid
    "x86_64": frozenset({202, 35, 230, 7, 271, 23, 270, 232, 281, 441, 43, 288, 42, 45, 47, 44, 46, 61, 247}),
    "aarch64": frozenset({98, 101, 115, 73, 72, 22, 441, 202, 242, 203, 207, 212, 206, 211, 260, 95}),
}
"""The numbers of system calls that wait for no disk, whatever they are given. Others may: a read, say, of a file."""
_FORGETS = (b"fuse_reverse_inval", b"fuse_notify")
"""Functions of the kernel in which it is told to forget something of the mount: it may wait there for our own answer."""
_OTHER_MOUNT = b"request_wait_answer"
"""The same, in which another FUSE mount is waited for, as if it were a disk, but so that it can be interrupted."""


def is_asleep(thread: int) -> bool:
    """Whether a thread, by the kernel's number, sleeps in a call that waits for no disk, and nobody debugs it."""
    task = _TASKS / str(thread)
    try:
        status = (task / "status").read_text()
        number = (task / "syscall").read_text().split(maxsplit=1)[0]
        waits = _WAITS.get(os.uname().machine, frozenset())
        return "\nState:\tS" in status and not _is_traced(status) and number.isdigit() and int(number) in waits
    except (OSError, IndexError):
        return False


def are_held_up() -> bool:
    """Whether any thread waits for a disk, or is debugged, or this cannot be found out."""
    try:
        statuses = list(_statuses())
    except OSError:  # no descriptors are left, say
        return True
    for task, status in statuses:
        stack = b""
        for name in ("stack", "wchan"):  # of which the second one says the innermost place to anybody
            with contextlib.suppress(OSError):  # it has ended, or the kernel does not let us
                stack += (task / name).read_bytes()
        uninterruptible = "\nState:\tD" in status and not any(name in stack for name in _FORGETS)
        if uninterruptible or _OTHER_MOUNT in stack or _is_traced(status):
            return True
    return False


def uninterruptible() -> set[tuple[str, str]]:
    """Return the threads that wait and cannot be interrupted, each with how often it has waited."""
    return {
        (task.name, status.partition("\nvoluntary_ctxt_switches:\t")[2].partition("\n")[0])
        for task, status in _statuses()
        if "\nState:\tD" in status
    }


def _is_traced(status: str) -> bool:
    return "\nTracerPid:\t0\n" not in status or "\nState:\tT" in status or "\nState:\tt" in status


def _statuses() -> Iterator[tuple[Path, str]]:
    for task in _TASKS.iterdir():
        with contextlib.suppress(OSError):  # it has ended
            yield task, (task / "status").read_text()
