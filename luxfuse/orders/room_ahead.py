"""Evicts ahead of what schedules fetch: choosing what goes waits for a commit of the index, and no fetch is to wait for it.

Files that have to wait for room take a task and a thread of their own each, so room is made for many at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import STUCK_S, Space

log = logging.getLogger(__name__)


class RoomAhead:
    """Keeps room for what is fetched next."""

    def __init__(self, cache: PageCache, ahead_bytes: Callable[[], int]) -> None:
        """``ahead_bytes``: how much there is to be room for."""
        self._cache = cache
        self._ahead_bytes = ahead_bytes
        self._wanted = trio.Event()

    async def make(self, wanted_bytes: int) -> None:
        """Make room for so much if there is none, and in the background for more."""
        if (space := self._short(wanted_bytes)) is not None:
            await space.make_room(wanted_bytes)
        self._wanted.set()

    def _short(self, wanted_bytes: int) -> Space | None:
        """Return where to make room; None if there is some."""
        spaces = [space for space in self._cache.hierarchy.spaces if not space.shut]
        return spaces[-1] if spaces and all(space.ledger.shortage(wanted_bytes) for space in spaces) else None

    async def run(self) -> None:
        """Keep room ahead, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            ahead_bytes = self._ahead_bytes()
            try:
                if (space := self._short(ahead_bytes)) is not None and not await space.make_room(ahead_bytes):
                    await trio.sleep(STUCK_S)
            except Exception:  # it must not end the mount
                log.exception("making room ahead failed in an unexpected way")
                await trio.sleep(STUCK_S)
