"""After an unclean stop: remove cache files that the index does not know, in the background."""

from __future__ import annotations

import logging
from itertools import islice

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.tiers.directory import CacheDirectory

log = logging.getLogger(__name__)

BATCH = 500
PAUSE_S = 0.1


async def sweep(cache: PageCache, directory: CacheDirectory) -> None:
    """Look at every cache file once. A file that a fetch is writing right now belongs to a live object and stays."""
    stored = directory.stored()
    removed = 0
    try:
        while batch := await trio.to_thread.run_sync(lambda: list(islice(stored, BATCH))):
            for oid in batch:
                if not cache.knows(oid):
                    await cache.space.remove(oid)
                    removed += 1
            await trio.sleep(PAUSE_S)
    except OSError as exc:
        log.info("looking for leftover cache files ended early: %s", exc)
    if removed:
        log.info("removed %d cache files that an unclean stop left behind", removed)
