"""Compares cache files with their records, and mends them.

Theory of operation
-------------------
Nobody waits for a check, and it keeps nobody waiting: it reads in slices, from the disk and past the page cache, keeps to
`BYTES_PER_S`, and lets fetches for readers go first. Between slices it holds nothing, so an object can be evicted,
moved or written to meanwhile; a finding is believed only if the object is then still the same, in the same file
(`Contents.still_there`). Nothing of a file that the kernel has open is mended (`Contents.may_drop`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice

import trio

from luxfuse.cache import disk
from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.contents import Contents
from luxfuse.cache.space import Space
from luxfuse.cache.sweep import unknown
from luxfuse.core.spans import page_bytes
from luxfuse.index.object_records import ObjectRecord
from luxfuse.types import PAGE_BYTES

BYTES_PER_S = 256 << 20
SLICE_PAGES = 8
TURN_SLICES = 16
"""Others go first once in so many slices of small files: else a busy mount with many of them would never be done."""
SLACK_BYTES = 4 << 20
"""A file takes more on disk than its pages: structures of the file system, and a huge page of memory."""


@dataclass(slots=True)
class Verdict:
    """The findings about a file. ``error``: why it cannot be read; ``disk_bytes`` is set if it is counted wrong."""

    damaged: list[int] = field(default_factory=list)
    error: OSError | None = None
    file_size: int | None = None
    """Its size, if that is not the object's."""
    foreign: bool = False
    """Whether its mtime is not the one that our last write left."""
    disk_bytes: int | None = None
    stamp: int = 0
    recorded_stamp: int = 0

    @property
    def good(self) -> bool:
        """Whether there is nothing to say."""
        plain = self.error is None and self.file_size is None and self.disk_bytes is None
        return plain and not self.damaged and not self.foreign


class FileCheck:
    """Checks the files of one mount's cache."""

    def __init__(self, contents: Contents, budget: ByteBudget) -> None:
        self._contents = contents
        self._budget = budget
        self._thread = trio.CapacityLimiter(1)
        self.checked_bytes = 0
        self._turn_bytes = self._turn_slices = 0
        """Up to where, of ``checked_bytes``, and for how many slices it need not let others go first again."""

    async def object(self, record: ObjectRecord) -> Verdict | None:
        """Check an object's file; None if the object is not there any more, or is not what it was."""
        verdict = Verdict()
        position: int | None = 0
        while position is not None:
            began_s, before = trio.current_time(), self.checked_bytes
            await self._take_turn()
            obj = self._contents.acquire(record.key, record.version, record.size)
            try:
                same, position = await self._slice(obj, position, verdict)
            except OSError as exc:
                verdict.error = exc
                return verdict
            finally:
                self._contents.release(obj)
            if not same:
                return None
            await trio.sleep_until(began_s + (self.checked_bytes - before) / BYTES_PER_S)
        return verdict

    async def _take_turn(self) -> None:
        """Let others go first, once in 8 MiB and a few files."""
        if self._turn_slices <= 0 or self.checked_bytes >= self._turn_bytes:
            await self._budget.let_others_go_first()
            self._turn_bytes, self._turn_slices = self.checked_bytes + SLICE_PAGES * PAGE_BYTES, TURN_SLICES
        self._turn_slices -= 1

    async def _slice(self, obj: CachedObject, position: int, verdict: Verdict) -> tuple[bool, int | None]:
        """Check the next pages from ``position`` on; returns whether it is still the same file, and where to go on."""
        oid, record, space, cuts = obj.oid, obj.record, obj.space, obj.cuts
        if space is None or space.degraded or not obj.pages.count or oid in self._contents.hierarchy.removing:
            return False, None
        pages = list(islice((page for page in range(position, obj.pages.total) if obj.pages.has(page)), SLICE_PAGES))
        sums = [obj.pages.checksums[page] for page in pages]
        quiet, stamp = not obj.flights, record.stamp
        try:
            found = await trio.to_thread.run_sync(
                disk.examine, space.directory, oid, obj.size, pages, sums, limiter=self._thread
            )
        except OSError:
            if self._contents.still_there(obj, oid, record, space):
                raise
            return False, None
        if not self._contents.still_there(obj, oid, record, space) or obj.cuts != cuts:
            return False, None
        self.checked_bytes += sum(page_bytes(page, obj.size) for page in pages)
        verdict.damaged += [page for page in found.damaged if obj.pages.has(page)]
        if position == 0 and quiet and not obj.flights and stamp == record.stamp:
            verdict.stamp, verdict.recorded_stamp = found.stamp, stamp
            verdict.foreign = found.stamp != stamp and record.epoch == self._contents.epoch
            verdict.file_size = found.size if found.size != obj.size else None
            excess = found.allocated_bytes - record.allocated_bytes
            verdict.disk_bytes = found.allocated_bytes if excess > SLACK_BYTES + PAGE_BYTES else None
        return True, pages[-1] + 1 if len(pages) == SLICE_PAGES else None

    def mend(self, record: ObjectRecord, verdict: Verdict) -> bool:
        """Drop damaged pages and set the rest right; False, with nothing done, if the file is in use. Raises OSError.

        Not for a file that cannot be read.
        """
        obj = self._contents.acquire(record.key, record.version, record.size)
        try:
            if obj.space is None or not obj.pages.count or obj.oid in self._contents.hierarchy.removing:
                return True  # it is gone
            if not self._contents.may_drop(obj.oid):
                return False
            damaged = tuple(page for page in verdict.damaged if obj.pages.has(page))
            if damaged:
                self._contents.trust.mend(obj, damaged)
            if verdict.disk_bytes is not None and not obj.flights:
                self._contents.trust.recount(obj, verdict.disk_bytes - sum(page_bytes(page, obj.size) for page in damaged))
            return self._mend_file(obj, verdict) if verdict.foreign or verdict.file_size is not None else True
        finally:
            self._contents.release(obj)

    def _mend_file(self, obj: CachedObject, verdict: Verdict) -> bool:
        """Give a file the right size and vouch for it, unless somebody has written to it since it was looked at.

        As where a file is handed to the kernel, there is no wait: so it is the object's.
        """
        assert obj.space is not None
        fd = obj.space.directory.open(obj.oid)
        try:
            changed = os.fstat(fd).st_mtime_ns != verdict.stamp or obj.record.stamp != verdict.recorded_stamp
            if changed or obj.flights:
                return False
            if verdict.file_size is not None:
                os.ftruncate(fd, obj.size)
            self._contents.trust.vouch(obj, os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)
        return True

    async def strays(self, space: Space) -> AsyncGenerator[bytes, None]:
        """Yield the ids of the cache files in a directory that belong to nothing. Raises OSError."""
        async with aclosing(unknown(self._contents, space)) as candidates:
            async for oid in candidates:
                there = await trio.to_thread.run_sync(space.directory.file_of(oid).exists)
                if there and not self._contents.knows(oid, space):  # else it was evicted, or fetched, just now
                    yield oid

    async def left_of_moves(self, space: Space) -> list[bytes]:
        """Return the objects of which moves have left something in ``moving/``. Raises OSError."""
        known = set(self._contents.hierarchy.moving)
        seen = set(await trio.to_thread.run_sync(space.directory.left_of_moves))
        known |= self._contents.hierarchy.moving
        if seen - known:  # a move may have begun and ended meanwhile; then nothing is left of it now
            seen &= set(await trio.to_thread.run_sync(space.directory.left_of_moves))
        return sorted(seen - known - self._contents.hierarchy.moving)
