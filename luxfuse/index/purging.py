"""Removes in the background the records below removed directories.

A directory that goes, or that is written to after it went, is noted in REMOVED (``inode (8 bytes)`` -> nothing) in the
same transaction. The records below it go some at a time, and then the note.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from luxfuse.index import bulk
from luxfuse.index.store import IndexStore
from luxfuse.index.uncommitted import Table

log = logging.getLogger(__name__)

PURGE_RECORDS = 5_000
"""Names of removed directories that are forgotten in one transaction."""
PURGE_DELAY_S = 1.0
"""So directories that are removed one after the other go in one transaction."""
PURGE_PAUSE_S = 0.05
PURGE_RETRY_S = 60.0


class Purger:
    """Goes through REMOVED whenever something is noted there."""

    def __init__(self, store: IndexStore, purging: Callable[[], None], purged: Callable[[], None]) -> None:
        """``purging``: called before names go, which may be told of. ``purged``: after records went, which may be kept."""
        self._store = store
        self._purging = purging
        self._purged = purged
        self.running = False
        """Whether names may go at any moment: no others are to be told of."""
        self._noted = trio.Event()
        if store.committed_items(Table.REMOVED, b"", b"", 1):
            self._noted.set()

    def wake(self) -> None:
        """A directory was noted in REMOVED."""
        self._noted.set()

    async def run(self) -> None:
        """Purge until cancelled."""
        while True:
            await self._noted.wait()
            await trio.sleep(PURGE_DELAY_S)
            self._noted = trio.Event()
            try:
                await self._purge()
            except OSError as exc:
                log.info("records below removed directories stay in the index for now: %s", exc)
                await trio.sleep(PURGE_RETRY_S)
                self._noted.set()

    async def _purge(self) -> None:
        more = True
        while more:
            self.running = True
            try:
                more = await self._purge_some()
            finally:
                self.running = False
                self._purged()
            if more:
                await trio.sleep(PURGE_PAUSE_S)

    async def _purge_some(self) -> bool:
        """Return whether there is more to do, as what was noted meanwhile: names below that may be told of."""
        directories, names = await self._store.run(lambda txn: bulk.removed(txn, PURGE_RECORDS))
        if names:
            self._purging()
        return await self._store.run(lambda txn: bulk.purge(txn, directories, PURGE_RECORDS))
