"""Holds requests back so that a bandwidth limit is kept. The event loop never waits: such a request is made later."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from luxfuse.core.bandwidth import BandwidthQueue

LEAST_SLEEP_S = 0.001
UNLIMITED_BYTES_S = 1 << 60


class Throttle:
    """One limit of a store, or none yet. `run` it."""

    def __init__(self, bytes_s: int | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queue: BandwidthQueue[Callable[[], None]] = BandwidthQueue(bytes_s or UNLIMITED_BYTES_S, clock())
        self._stir = trio.Event()
        self.limited = bytes_s is not None
        """Whether anybody has to ask."""
        self._closing = False

    def set_rate(self, bytes_s: int | None) -> None:
        """From now on so many bytes a second, None: any number; for requests too that are held back."""
        self.limited = bytes_s is not None
        self._queue.set_rate(bytes_s or UNLIMITED_BYTES_S, self._clock())
        self._release()
        self._stir.set()

    @property
    def holding(self) -> int:
        """The number of requests that are held back."""
        return len(self._queue)

    def try_admit(self, size_bytes: int) -> bool:
        """Whether so many bytes may be transferred now; they are counted then."""
        return self._queue.try_take(size_bytes, self._clock())

    def admit(self, size_bytes: int, go: Callable[[], None], *, background: bool = False) -> None:
        """Call ``go`` when so many bytes may be transferred: at once, or in the event loop later."""
        self._queue.put(size_bytes, go, background=background)
        self._release()
        self._stir.set()

    async def wait(self, size_bytes: int, *, background: bool = False) -> None:
        """Wait until so many bytes may be transferred; if that is given up, they count all the same."""
        go = trio.Event()
        self.admit(size_bytes, go.set, background=background)
        await go.wait()

    def charge(self, size_bytes: int) -> None:
        """Count bytes that are transferred once more, without a wait."""
        self._queue.charge(size_bytes)

    def _release(self) -> None:
        for go in self._queue.take(self._clock()):
            go()

    def close(self) -> None:
        """Let all go, and `run` end."""
        self._closing = True
        self.set_rate(None)

    async def run(self) -> None:
        """Let requests go when it is their time; until cancelled, or closed."""
        while not self._closing or self.holding:
            wait_s = self._queue.wait_s()
            with trio.move_on_after(math.inf if wait_s is None else max(LEAST_SLEEP_S, wait_s)) as scope:
                await self._stir.wait()  # the rate may have changed
                self._stir = trio.Event()
            if scope.cancelled_caught:
                self._release()
