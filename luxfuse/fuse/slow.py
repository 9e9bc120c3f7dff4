"""Logs requests that took long: which, of what file, for whom, and what they waited for."""

from __future__ import annotations

import logging
import time
from typing import Any

from luxfuse.core.ration import Ration
from luxfuse.core.tallies import QUEUE
from luxfuse.core.units import format_size
from luxfuse.fuse.accesses import SILENT, Programs, access_of
from luxfuse.fuse.errnos import Running
from luxfuse.fuse.noting import LEAST_S
from luxfuse.fuse.operations import Operations

log = logging.getLogger(__name__)

MOST, EVERY_S = 60, 60.0
"""Lines, and in which time; of more, only the number is told."""


class SlowRequests:
    """An observer of one mount's requests, but for those that lanes answer: these wait for the cache disk alone.

    (While there is one, opens wait for their files here, and not in C.)
    """

    def __init__(self, operations: Operations, slow_s: float) -> None:
        self._operations = operations
        self._slow_s = slow_s
        self._programs = Programs()
        self._ration = Ration(MOST, EVERY_S)

    def __call__(self, running: Running, arguments: tuple[Any, ...], result: Any, code: int) -> None:
        """Log a request if it took long, its wait for the event loop included."""
        now_s = time.perf_counter()
        if now_s - running.began_s + running.queued_s < self._slow_s or running.name in SILENT:
            return
        self.tell_untold(now_s)
        if not self._ration.may_say(now_s):
            return
        access = access_of(self._operations, running, arguments, result, code, in_kernel=False)
        process, program = self._programs.of(access.thread)
        places = dict(running.places or {}) | ({QUEUE: access.queued_s} if access.queued_s >= LEAST_S else {})
        waited = max(places, key=lambda place: places[place]) if places else ""
        sources = ", ".join(f"{format_size(size)} from {source}" for source, size in (access.sources or {}).items())
        parts = [f"it waited for {waited}" if waited else "", f"got {sources}" if sources else "", access.error]
        log.warning(
            "slow request: %s of %s took %.2f s, for %s (process %d, user %d)%s",
            access.operation, access.file, access.took_s + access.queued_s, program, process, access.user,
            "".join(f"; {part}" for part in parts if part),
        )  # fmt: skip

    def tell_untold(self, now_s: float) -> None:
        """Log how many were not told, if the time that this is said for is over; ``now_s``: by `time.perf_counter`."""
        if untold := self._ration.settle(now_s):
            log.warning("slow request: %d more in the minute before were not told", untold)
