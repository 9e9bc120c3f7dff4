"""The end of a daemon, and processes that cannot end."""

from __future__ import annotations

import os
import select
import signal
import time

from luxfuse.keeper.link import Link

PIDFD_THREAD = os.O_EXCL
STUCK_AFTER_S = 1.0
LOOK_EVERY_S = 0.1
NOT_BEGUN = -1
"""In the place of a status of waitpid(2)."""


def status_text(status: int) -> str:
    """Say how a process ended."""
    if status == NOT_BEGUN:
        return "no process could be made"
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"exit code {os.waitstatus_to_exitcode(status)}"


class Processes:
    """Waits for one daemon after the other."""

    def __init__(self) -> None:
        self._stuck: list[int] = []

    def await_end(self, pid: int, link: Link) -> int:
        """Hear what a daemon says until it ends, or is as good as dead; returns its status."""
        try:
            ends = [os.pidfd_open(pid)]
        except OSError:  # a sandbox does not let us, or there are no descriptors left
            return _await_end_by_looking(pid, link)
        poll = select.poll()
        poll.register(ends[0], select.POLLIN)
        poll.register(link.fileno(), select.POLLIN)
        while not {fd for fd, _ in poll.poll()}.intersection(ends):
            if not link.hear():
                poll.unregister(link.fileno())
            if link.witness and len(ends) == 1 and (fd := _thread(link.witness)) >= 0:
                ends.append(fd)
                poll.register(fd, select.POLLIN)
        for fd in ends:
            os.close(fd)
        link.close()
        return self._status(pid)

    def _status(self, pid: int) -> int:
        """A thread has ended: return the status once all have, or wait for nothing but FUSE."""
        looked_at = time.monotonic()
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
            if time.monotonic() - looked_at > STUCK_AFTER_S:
                looked_at = time.monotonic()
                if _waits_for_fuse(pid):
                    self._stuck.append(pid)
                    return signal.SIGKILL
            time.sleep(0.01)

    def reap(self, *_: object) -> None:
        """Something has ended: if it is one that could not, do not keep its remains."""
        for pid in list(self._stuck):
            try:
                ended, _status = os.waitpid(pid, os.WNOHANG)
            except OSError:
                ended = pid
            if ended:
                self._stuck.remove(pid)


def _await_end_by_looking(pid: int, link: Link) -> int:
    """Hear what a daemon says until it ends, by looking again and again; returns its status."""
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            link.close()
            return status
        if poll.poll(LOOK_EVERY_S * 1000) and not link.hear():
            time.sleep(LOOK_EVERY_S)  # it has closed its end


def _thread(number: int) -> int:
    """Return a descriptor that can be read once a thread has ended, -1 before Linux 6.9."""
    try:
        return os.pidfd_open(number, PIDFD_THREAD)
    except OSError:
        return -1


def _waits_for_fuse(pid: int) -> bool:
    """Whether all that is left of a process waits inside the kernel's FUSE; False where the kernel does not say."""
    tasks = f"/proc/{pid}/task"
    try:
        for task in os.listdir(tasks):  # noqa: PTH208 (pathlib is large)
            with open(f"{tasks}/{task}/stack", "rb", buffering=0) as file:  # noqa: PTH123 (as above)
                stack = file.read(4096)
            if stack and b"fuse_" not in stack:
                return False
    except OSError:
        return False
    return True
