"""Spare staging files, made ahead so that making a file waits for no disk."""

from __future__ import annotations

import trio

from luxfuse.tiers.staging import Staging

REFILL_RETRY_S = 1.0


class SpareFiles:
    """The spare files of one mount."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._low = trio.Event()

    def look(self) -> None:
        """One was taken: have more made if they run low."""
        if self._staging.spares_low:
            self._low.set()

    async def run(self) -> None:
        """Keep some at hand, until cancelled."""
        while True:
            self._low = trio.Event()
            while self._staging.spares_low:
                try:
                    await trio.to_thread.run_sync(self._staging.refill)
                except OSError:  # the next file that is made meets it
                    await trio.sleep(REFILL_RETRY_S)
            await self._low.wait()
