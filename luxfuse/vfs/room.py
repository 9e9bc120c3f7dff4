"""Room in the cache for files that the under-store does not have yet: waiting for it, and counting it."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.core.ledger import allocated_bytes
from luxfuse.errors import LuxError
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import Tier
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import NoRoom, TooMany
from luxfuse.vfs.grants import Grants
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

ROOM_POLL_S = 0.1


class Room:
    """The room that the staging files of one mount take."""

    def __init__(
        self,
        *,
        entries: DirtyEntries,
        cache: PageCache,
        staging: Staging,
        journal: Journal,
        writeback: WriteBack,
        kernel: Kernel,
        timeout_s: float,
        most_dirty: int,
    ) -> None:
        """``timeout_s``: how long writers wait for room in the cache; ``most_dirty``: see `core.memory.Shares`."""
        self._entries = entries
        self._cache = cache
        self._staging = staging
        self._journal = journal
        self._writeback = writeback
        self._grants = Grants(kernel)
        self.timeout_s = timeout_s
        self.most_dirty = most_dirty

    @asynccontextmanager
    async def kept(self, dirty: Dirty, wanted_bytes: int) -> AsyncIterator[None]:
        """Wait for room where the staging file is, keep it for the block, then count the taken part. Raises `NoRoom`."""
        space, wanted = self.space_of(dirty), allocated_bytes(wanted_bytes)
        if wanted:  # else it takes no more than before, however full the cache is
            await self.wait(wanted, space, more_files=False)
        reserved = wanted if space.ledger.reserve(wanted) else 0
        dirty.reserve()
        try:
            yield
        finally:
            dirty.unreserve()
            if dirty.reservations and dirty.source is not None:  # the last one finds out what all took
                space.ledger.settle(reserved, reserved)
                space.staged_bytes += reserved
                dirty.count(dirty.accounted_bytes + reserved)
            else:
                space.ledger.settle(reserved, 0)
                if dirty.source is not None:
                    self.account(dirty)

    async def fill(self, dirty: Dirty) -> None:
        """Bring everything into the staging file. Raises `NoRoom`, `StoreError`, OSError."""
        content = dirty.content
        if not content.complete:
            async with self.kept(dirty, content.size):
                await content.complete_all()

    async def wait(self, wanted_bytes: int, space: Space | None = None, *, more_files: bool = True) -> None:
        """Wait until so many more bytes fit, at home or in ``space``. Raises `NoRoom` after the room timeout.

        Files that the store does not have yet take memory, so there is a bound on their number, too (`TooMany`): it is
        waited for unless the bytes are for a file that is one of them already.
        """
        if self.fits(wanted_bytes, space, more_files=more_files):
            return
        space = space or self._cache.hierarchy.home
        deadline_s = trio.current_time() + self.timeout_s
        while True:
            too_many = more_files and self._are_too_many()
            if not too_many:
                if space.has_room(wanted_bytes) and await space.make_room(wanted_bytes):
                    return
                if self._take_back(space):
                    continue
            no_room = NoRoom(
                f"no room in the cache for {wanted_bytes} bytes: {space.staged_bytes} bytes, {len(self._entries)} "
                "files are not in the under-store yet"
            )
            in_vain = space.capacity_bytes is not None and wanted_bytes > space.capacity_bytes
            await self._look_later(-math.inf if in_vain else deadline_s, self._too_many() if too_many else no_room)

    async def wait_for_fewer(self) -> None:
        """Wait until one more directory or symlink may be made, or name removed, which takes memory only: see `wait`.

        Raises `TooMany`.
        """
        deadline_s = trio.current_time() + self.timeout_s
        while self._are_too_many():
            await self._look_later(deadline_s, self._too_many())

    async def _look_later(self, deadline_s: float, error: LuxError) -> None:
        """Give uploads a moment to make room. Raises ``error`` when the time is over."""
        if trio.current_time() >= deadline_s:
            raise error
        self._writeback.hurry(failed=False)
        await trio.sleep(ROOM_POLL_S)

    def _too_many(self) -> TooMany:
        files, deletes = len(self._entries), len(self._journal.deletes)
        return TooMany(f"{files} changed files and {deletes} removals are not in the under-store yet: no more are taken")

    def _are_too_many(self) -> bool:
        return len(self._entries) + len(self._journal.deletes) >= self.most_dirty

    def fits(self, wanted_bytes: int, space: Space | None = None, *, more_files: bool = True) -> bool:
        """Whether there is room for so many more bytes, at home or in ``space``, without making any. See `wait`."""
        space = space or self._cache.hierarchy.home
        if (more_files and self._are_too_many()) or space.ledger.shortage(wanted_bytes):
            return False
        return space.has_room(wanted_bytes)

    def account(self, dirty: Dirty) -> None:
        """Count what the staging file takes on disk now."""
        if dirty.reservations:  # what is written now is counted already
            return
        self._grants.count(dirty)  # first: what the lanes write meanwhile is rather counted twice than not at all
        st = dirty.content.stat()
        if st is not None and st.st_blocks * 512 != dirty.accounted_bytes:
            self.space_of(dirty).count_staged(dirty.count(st.st_blocks * 512))

    def grant_first(self, dirty: Dirty, space: Space) -> None:
        """A file in a directory is opened for writing: let the lanes fill some room on their own, if they write to it."""
        self._grants.first(dirty, space)

    async def grant_more(self, dirty: Dirty) -> None:
        """A write had to ask: let the lanes go on for longer."""
        if dirty.source is not None:
            await self._grants.more(dirty, self.space_of(dirty))

    def end_grant(self, dirty: Dirty) -> None:
        """Nobody writes any more: what was granted and not filled is for others. The caller counts the file."""
        self._grants.count(dirty)

    def _take_back(self, space: Space) -> bool:
        """Have all writers of a directory ask; returns whether that gives room."""
        before = space.ledger.reserved_bytes
        for dirty in self._grants.take_back(space):
            self.account(dirty)
        return space.ledger.reserved_bytes < before

    def space_of(self, dirty: Dirty) -> Space:
        """Return where the staging file is."""
        return self._cache.hierarchy.of(self._staging.directory_of(dirty.number))

    def is_volatile(self, space: Space | None) -> bool:
        """Whether a directory does not outlive the machine."""
        return space is not None and space.tier == "mem" and space is not self._cache.hierarchy.home

    def is_unfit(self, space: Space | None) -> bool:
        """Whether nothing should be staged in a directory if that can be helped."""
        return space is not None and (space.draining or self.is_volatile(space))

    def tier_of(self, dirty: Dirty) -> Tier:
        """Return the tier of the staging file."""
        return self.space_of(dirty).tier

    def remove(self, dirty: Dirty) -> None:
        """Remove the staging file, not before it is durable that nobody looks for it."""
        space, number, size = self.space_of(dirty), dirty.number, dirty.accounted_bytes
        if not dirty.promised or self._journal.is_durable(number):
            self._staging.remove(number)
            space.count_staged(-size)
            return
        remove = self._staging.retire(number)
        space.retired_bytes += size
        reached("discard.retired")

        def finish() -> None:
            reached("discard.committed")
            try:
                remove()
            except OSError as exc:
                log.warning("the staging file %x cannot be removed; the next mount does it: %s", number, exc)
                return
            space.retired_bytes -= size
            space.count_staged(-size)

        self._journal.after_commit(finish)
