"""How fast write-back goes: what pushes and deletes share."""

from __future__ import annotations

import random

import trio

WRITE_BACK_DELAY_S = 1.0
"""How long a closed file waits in `async-through`: what is renamed or removed meanwhile needs fewer requests."""
CONCURRENT_PUSHES = 32


class Pace:
    """The pace of one mount, and what wakes its loop."""

    def __init__(self) -> None:
        self.delay_s = WRITE_BACK_DELAY_S
        self.urgent = False
        """Whether the write-back delay is left out, and pauses after failures are short (draining)."""
        self.failures = 0
        """Requests that failed, of which `status` tells."""
        self.rng = random.Random()  # noqa: S311 (it spreads retries)
        self._wake = trio.Event()

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    async def rest(self, longest_s: float) -> None:
        """Wait until something may be due."""
        with trio.move_on_after(longest_s):
            await self._wake.wait()
        self._wake = trio.Event()
