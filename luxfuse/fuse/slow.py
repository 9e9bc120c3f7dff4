"""Logs requests that took long: which, of what file, for whom, and what they waited for."""

from __future__ import annotations

import logging
import time
from typing import Any

from luxfuse.core.units import format_size
from luxfuse.fuse.accesses import SILENT, Programs, access_of
from luxfuse.fuse.errnos import Running
from luxfuse.fuse.operations import Operations

log = logging.getLogger(__name__)

MOST_A_MINUTE = 60
"""Lines; of more, only the number is told."""


class SlowRequests:
    """An observer of one mount's requests, but for those that lanes answer: these wait for the cache disk alone."""

    def __init__(self, operations: Operations, slow_s: float) -> None:
        self._operations = operations
        self._slow_s = slow_s
        self._programs = Programs()
        self._minute_s = 0.0
        self._told = self._untold = 0

    def __call__(self, running: Running, arguments: tuple[Any, ...], result: Any, code: int) -> None:
        """Log a request if it took long."""
        if time.perf_counter() - running.began_s < self._slow_s or running.name in SILENT or not self._may_tell():
            return
        access = access_of(self._operations, running, arguments, result, code, in_kernel=False)
        process, program = self._programs.of(access.thread)
        places = running.places or {}
        waited = max(places, key=lambda place: places[place]) if places else ""
        sources = ", ".join(f"{format_size(size)} from {source}" for source, size in (access.sources or {}).items())
        parts = [f"it waited for {waited}" if waited else "", f"got {sources}" if sources else "", access.error]
        log.warning(
            "slow request: %s of %s took %.2f s, for %s (process %d, user %d)%s",
            access.operation, access.file, access.took_s, program, process, access.user,
            "".join(f"; {part}" for part in parts if part),
        )  # fmt: skip

    def _may_tell(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._minute_s >= 60.0:
            if self._untold:
                log.warning("slow request: %d more in the minute before were not told", self._untold)
            self._minute_s, self._told, self._untold = now_s, 0, 0
        self._told += 1
        self._untold += self._told > MOST_A_MINUTE
        return self._told <= MOST_A_MINUTE
