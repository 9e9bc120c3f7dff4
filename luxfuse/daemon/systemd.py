"""What a mount in the foreground tells systemd: that it serves, what it does, that it lives.

Nobody is told where systemd did not ask, nor of a mount in the background: the service that it was made in is not ours.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import trio

from luxfuse.keeper import saying

EXTEND_S = 60
"""How much more time systemd is asked for while something that takes long goes on."""
EVERY_S = 5.0
STALLED_S = 30.0
"""No more time is asked for where there is no progress for so long."""


class Systemd:
    """``wanted``: the mount is in the foreground."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._said_at = float("-inf")

    def _tell(self, *assignments: str) -> None:
        if self._wanted:
            saying.notify("\n".join(assignments))

    def serves(self, what: str) -> None:
        """The tree answers."""
        self._tell("READY=1", f"STATUS={what}")

    def goes_on(self, what: str = "", stalled_s: float = 0.0) -> None:
        """Something takes long, and has made no progress for ``stalled_s``; ``what``: the status, if that changes."""
        now = time.monotonic()
        if now - self._said_at >= EVERY_S and stalled_s < STALLED_S:
            self._said_at = now
            self._tell(f"EXTEND_TIMEOUT_USEC={EXTEND_S}000000", *([f"STATUS={what}"] if what else []))

    def ends(self) -> None:
        """The mount is gone, and this daemon has no successor."""
        self._tell("STOPPING=1")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """The settings are read again in this block."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self._tell("READY=1")

    async def beat(self) -> None:
        """Say that the event loop turns, twice in the time after which systemd gives the service up; until cancelled."""
        usec = os.environ.get("WATCHDOG_USEC", "")
        if not self._wanted or not usec.isdigit() or int(usec) == 0:
            return
        while True:
            self._tell("WATCHDOG=1")
            await trio.sleep(int(usec) / 2e6)
