"""The descriptors of staging files: as many stay open as fit, those used last; others are opened again by their paths.

A file that waits for its upload, or that the kernel writes to by itself, needs none of ours.
"""

from __future__ import annotations

import errno
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Protocol, TypeVar

import trio

from luxfuse.errors import LuxError
from luxfuse.shares import limit, shares

log = logging.getLogger(__name__)
T = TypeVar("T")

SHORTAGE_WAITS_S = (0.05, 0.2, 1.0)
LOGGED_S = 60.0
TRIES = 64


class Parkable(Protocol):
    """An open file that can be opened again."""

    def park(self) -> bool:
        """Close it unless it is being used; returns whether it is closed."""


class Descriptors:
    """Open files in the order of their last uses. Threads may share it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: OrderedDict[Parkable, None] = OrderedDict()
        self.parking = threading.RLock()
        """Held while files are parked, by any thread."""

    def used(self, file: Parkable) -> None:
        """A file is open and used now; others that are not, are closed where there are too many."""
        with self.parking:
            self._open[file] = None
            self._open.move_to_end(file)
            if len(self._open) > self.most:
                self._park(file)

    def _park(self, spared: Parkable) -> None:
        for oldest in list(islice(self._open, TRIES)):
            if len(self._open) <= self.most:
                return
            if oldest is not spared and oldest.park():
                self._open.pop(oldest, None)
            else:
                self._open.move_to_end(oldest)  # it is in use: look at others first

    def closed(self, file: Parkable) -> None:
        """A file is closed for good."""
        with self.parking:
            self._open.pop(file, None)

    def __len__(self) -> int:
        return len(self._open)


class NoDescriptors(LuxError):
    """A file cannot be opened, as the process or the machine has no descriptors left."""

    errno = errno.ENFILE


def is_shortage(exc: OSError) -> bool:
    """Whether an error says nothing of the disk, but that the process or the machine has no descriptors left."""
    return exc.errno in (errno.EMFILE, errno.ENFILE)


class Shortages:
    """Logs that no descriptors are left, once a minute: each read may meet it. Used in the event loop."""

    def __init__(self) -> None:
        self._logged_s = -math.inf
        self._unsaid = 0

    def note(self, what: str) -> None:
        """Something failed of that."""
        now_s = time.monotonic()
        if now_s - self._logged_s < LOGGED_S:
            self._unsaid += 1
            return
        before = f"; {self._unsaid} more times since it was logged last" if self._unsaid else ""
        self._logged_s, self._unsaid = now_s, 0
        log.warning(
            "%s: no descriptors are left, %d are allowed (further such failures are only counted for a minute)%s",
            what, limit(), before,
        )  # fmt: skip


shortages = Shortages()
"""Of all volumes: the limit is the process's."""


async def patiently(run: Callable[[], Awaitable[T]]) -> T:
    """Run what opens a file, and again where no descriptors are left. Raises `NoDescriptors`, OSError for all else."""
    for wait_s in (0.0, *SHORTAGE_WAITS_S):
        if wait_s:
            await trio.sleep(wait_s)
        try:
            return await run()
        except OSError as exc:
            if not is_shortage(exc):
                raise
    shortages.note("a cache file cannot be opened")
    raise NoDescriptors("no descriptors are left")


def of_this_process() -> Descriptors:
    """Return the one that all volumes share: the limit is the process's."""
    _shared.most = shares().staged
    return _shared


_shared = Descriptors(shares().staged)
