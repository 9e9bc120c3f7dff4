"""After an unclean stop, or a disk that failed, in the background: remove cache files that the index does not know.

And forget objects whose files are gone: the end came between the removal of a file and the commit of its record.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import islice

import trio

from luxfuse.cache.contents import Contents
from luxfuse.cache.space import Space
from luxfuse.tiers.directory import CacheDirectory

log = logging.getLogger(__name__)

BATCH = 500
PAUSE_S = 0.1
INTERVAL_S = 3600.0
"""Without being asked: a write that outlived the deadline of its request may have left a file."""


class Sweeper:
    """Clears the cache directories of files that nobody counts, whenever `request` says that there may be some."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._wanted = trio.Event()

    def request(self) -> None:
        """Look at all files soon; if that is under way, once more after it."""
        self._wanted.set()

    async def run(self) -> None:
        """First remove what earlier runs gave up as a whole; then sweep when asked to, and now and then."""
        for space in list(self._contents.hierarchy):
            await trio.to_thread.run_sync(space.directory.remove_doomed, abandon_on_cancel=True)
        while True:
            with trio.move_on_after(INTERVAL_S):
                await self._wanted.wait()
            asked, self._wanted = self._wanted.is_set(), trio.Event()
            for space in list(self._contents.hierarchy):
                await sweep(self._contents, space)
                if asked:
                    await forget_lost(self._contents, space)


async def sweep(contents: Contents, space: Space) -> None:
    """Look at every cache file of a directory once. A file that a fetch is writing right now belongs to something."""
    removed = 0
    try:
        async with aclosing(unknown(contents, space)) as strays:
            async for oid in strays:
                if space.gone:
                    return
                if await space.remove(oid) is None:
                    return  # the disk fails; once it recovers, this is asked for again
                removed += 1
        await sweep_moves(contents, space)
    except OSError as exc:
        log.info("looking for leftover cache files ended early: %s", exc)
    if removed:
        log.info("removed %d cache files that belonged to nothing", removed)


async def forget_lost(contents: Contents, space: Space) -> None:
    """Look for the file of every object that is recorded in a directory, once."""
    forgotten, after = 0, b""
    try:
        await contents.flush()
        while batch := contents.recorded_after(after, BATCH):
            after = batch[-1][0]
            here = [oid for oid, record in batch if record.directory == space.number]
            for oid in await trio.to_thread.run_sync(_missing, space.directory, here):
                if space.gone or space.degraded is not None:
                    return
                if _is_lost(contents, space, oid) and contents.let_go(oid):
                    await space.remove(oid)
                    forgotten += 1
            await trio.sleep(PAUSE_S)
    except OSError as exc:
        log.info("looking for lost cache files ended early: %s", exc)
    if forgotten:
        log.info("forgot %d cache files that are not there any more", forgotten)


def _missing(directory: CacheDirectory, oids: Sequence[bytes]) -> list[bytes]:
    there = (directory.path / "objects").is_dir()  # else its disk is gone, and may come back as it was
    return [oid for oid in oids if there and not directory.file_of(oid).exists()]


def _is_lost(contents: Contents, space: Space, oid: bytes) -> bool:
    """Whether an object is still recorded in a directory, without a file: others may have changed that meanwhile."""
    record = contents.record_of(oid)
    recorded = record is not None and record.directory == space.number and oid not in contents.hierarchy.removing
    return recorded and not space.directory.file_of(oid).exists()


async def sweep_moves(contents: Contents, space: Space) -> None:
    """Remove what moves have left behind that could not be removed at once. Raises OSError."""
    moving = contents.hierarchy.moving
    left = set(await trio.to_thread.run_sync(space.directory.left_of_moves)) - moving
    moving.update(left)  # so that none begins meanwhile
    try:
        await trio.to_thread.run_sync(space.directory.remove_left, left)
    finally:
        moving.difference_update(left)


async def unknown(contents: Contents, space: Space) -> AsyncGenerator[bytes, None]:
    """Yield the ids of the cache files of a directory that belong to nothing, or have just gone. Raises OSError."""
    stored = space.directory.stored()
    while batch := await trio.to_thread.run_sync(lambda: list(islice(stored, BATCH))):
        for oid in batch:
            if not contents.knows(oid, space):
                yield oid
        await trio.sleep(PAUSE_S)
