"""Files of copied opens that are *lent* to the lanes, which then answer their READs (`Kernel.lend`).

A file is lent once its object is whole. It is taken back before anything becomes of it: the last open ends, the inode is
written to or moved, or the cache wants to change or move the file (`Readers.may_drop`), or finds that it has other bytes
than were written.

A large file that will be whole, and is read here and there meanwhile, is lent before that: the lanes are told of each page
that is on disk and known to be good. But of a stream each READ is to come to us, as it says how far ahead to fetch
(`core.readahead`): so they are told of nothing that comes while one of the inode's opens is a stream, and for a while after
its last READ. Such a page is told of when it is asked for later.

Lanes do not count what is read: a file that lacks room would lose its hot pages to others. So none is lent that is larger
than its directory, and what is lent is not trimmed meanwhile (`cache.trim`).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from luxfuse.cache import descriptors
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.staged import StagedBytes
from luxfuse.core.spans import missing_runs
from luxfuse.index.entries import Entry
from luxfuse.shares import shares
from luxfuse.vfs.ahead import FillBehind
from luxfuse.vfs.kernel import Kernel

log = logging.getLogger(__name__)

LENT_FROM_BYTES = 8 << 20
"""So much of a file must be there before it is lent while it is being filled."""
TOLD_AT_ONCE = 4096
"""So many pages of a file are looked at in one turn of the loop."""
STREAM_RESTS_S = 2.0
"""So long after its last READ a stream is one no more: an open that has read the beginning of a file often stays idle."""
OFFER_AGAIN_S = 10.0
"""After so long a file is offered again that could not be lent, as for want of descriptors."""


@dataclass(slots=True)
class CopiedInode:
    """An inode with copied opens: they share the object, and keep the entry's version readable."""

    entry: Entry
    obj: CachedObject | None
    staged: StagedBytes | None = None
    """While the file is written to: its content, instead of the object's."""
    opens: int = 0
    nameless: bool = False
    """Whether it was removed."""
    lent: bytes | None = None
    """The cached object whose file is lent to the lanes."""
    filling: bool = False
    """Whether that one is still being filled."""
    file_number: int = 0
    """The inode number of that file."""
    offered: CachedObject | None = None
    """The object whose file is lent, or is about to be, or was refused: it is not offered again."""
    offered_filling: CachedObject | None = None
    """The same of files that are still being filled."""
    streamed_s: float = -math.inf
    """When a READ came last of an open that is a stream, by the event loop's clock."""
    not_before_s: float = -math.inf
    """When it may be offered, by the event loop's clock."""

    @property
    def is_streamed(self) -> bool:
        """Whether one of its opens is a stream, of which READs still come."""
        return trio.current_time() < self.streamed_s + STREAM_RESTS_S


class Lendings:
    """The files of one mount that are lent."""

    def __init__(
        self,
        *,
        cache: PageCache,
        kernel: Kernel,
        behind: FillBehind,
        nursery: trio.Nursery,
        inodes: Mapping[int, CopiedInode],
    ) -> None:
        """``inodes``: those with copied opens, by their numbers."""
        self._cache = cache
        self._kernel = kernel
        self._behind = behind
        self._nursery = nursery
        self._inodes = inodes
        self._lent: dict[bytes, set[int]] = {}
        """Inodes by the object whose file is lent for them."""
        self._lendings = 0
        """How many inodes that are, each of which takes a descriptor."""

    # -- files of whole objects

    async def offer(self, inode: int, shared: CopiedInode, obj: CachedObject) -> None:
        """Have the lanes answer the READs of an inode, which is open and whose object is whole, if they do not."""
        if shared.offered is obj or trio.current_time() < shared.not_before_s:
            return
        shared.offered = obj
        if self._cache.is_verified(obj):
            await self._lend(inode, shared, obj)
        else:  # that may take long for a large file
            self._nursery.start_soon(self._lend, inode, shared, obj)

    async def _lend(self, inode: int, shared: CopiedInode, obj: CachedObject) -> None:
        """Have the lanes answer the READs of an inode whose object is whole. The file may have to be verified first."""
        obj = self._cache.acquire(obj.record.key, obj.record.version, obj.size)  # the last open may end meanwhile
        try:
            fd = await self._cache.open_for_kernel(obj)
        except descriptors.NoDescriptors:  # which was logged; reads go on as before
            self._offer_later(shared, obj)
            return
        except Exception:
            log.exception("lending the file of %r failed in an unexpected way", obj.record.key)
            return
        except BaseException:  # the reader was interrupted: the next one offers it again
            if shared.offered is obj:
                shared.offered = None
            raise
        finally:
            self._cache.release(obj)
        # No wait from here on: the object is whole, and its file the one that was opened.
        still = self._inodes.get(inode) is shared and shared.offered is obj and shared.staged is None
        if fd is None:
            if still:
                shared.offered = None  # damaged pages were dropped: when they are there again
            return
        try:
            if still and shared.filling:
                self._end(inode, shared)
            if still:
                self._lend_file(inode, shared, obj, fd)
        except descriptors.NoDescriptors:
            self._offer_later(shared, obj)
        finally:
            os.close(fd)

    def _lend_file(self, inode: int, shared: CopiedInode, obj: CachedObject, fd: int, filling_bytes: int = 0) -> bool:
        """See `Kernel.lend`."""
        room = self._lendings < shares().lent  # others are read as before
        if shared.lent is not None or not room or not self._kernel.lend(inode, fd, filling_bytes):
            return False
        shared.lent, shared.filling, shared.file_number = obj.oid, filling_bytes > 0, obj.file_number
        self._lent.setdefault(obj.oid, set()).add(inode)
        self._lendings += 1
        return True

    # -- those that are still being filled

    def asked_for(self, inode: int, shared: CopiedInode, obj: CachedObject, pages: range) -> None:
        """Have the lanes answer for pages whose READs came to us, and for more of an object that will soon be whole."""
        if shared.is_streamed:
            return
        if shared.filling:
            self._tell(inode, obj, pages)
            return
        new = shared.offered_filling is not obj and obj.file_number and obj.cached_bytes >= LENT_FROM_BYTES
        if new and trio.current_time() >= shared.not_before_s and _has_room(obj) and self._behind.fits(obj):
            shared.offered_filling = obj
            self._nursery.start_soon(self._lend_filling, inode, shared, obj)

    async def _lend_filling(self, inode: int, shared: CopiedInode, obj: CachedObject) -> None:
        obj = self._cache.acquire(obj.record.key, obj.record.version, obj.size)
        fd = None
        try:
            fd = await self._cache.open_while_filled(obj)
            still = self._inodes.get(inode) is shared and shared.offered_filling is obj and shared.staged is None
            if fd is not None and still and not obj.whole and self._lend_file(inode, shared, obj, fd, obj.size):
                await self._tell_all(inode, shared, obj)
            elif still and not obj.whole:
                self._offer_later(shared, obj)
        except descriptors.NoDescriptors:
            self._offer_later(shared, obj)
        except Exception:
            log.exception("lending the file of %r failed in an unexpected way", obj.record.key)
        finally:
            if fd is not None:
                os.close(fd)
            self._cache.release(obj)

    async def _tell_all(self, inode: int, shared: CopiedInode, obj: CachedObject) -> None:
        for start in range(0, obj.pages.total, TOLD_AT_ONCE):
            self._tell(inode, obj, range(start, min(start + TOLD_AT_ONCE, obj.pages.total)))
            await trio.lowlevel.checkpoint()
            if not shared.filling or shared.lent != obj.oid:
                return  # it was taken back

    def _tell(self, inode: int, obj: CachedObject, pages: range) -> None:
        """Tell the lanes of those pages of an object that is being filled whose bytes we know to be good."""
        if obj.oid in self._cache.hierarchy.removing:
            return
        for run in missing_runs(pages, lambda page: not (obj.pages.has(page) and page in obj.trusted), len(pages)):
            self._kernel.fill(inode, run)

    def landed(self, obj: CachedObject, pages: range) -> bool:
        """More pages of an object can be read from disk; returns whether the lanes answer for them to all its readers."""
        inodes = list(self._lent.get(obj.oid, ()))
        told = bool(inodes)
        for inode in inodes:
            shared = self._inodes[inode]
            if shared.file_number != obj.file_number:
                self.end(inode, shared)
            elif shared.filling and not shared.is_streamed:
                self._tell(inode, obj, pages)
                continue
            told = False
        return told

    @staticmethod
    def _offer_later(shared: CopiedInode, obj: CachedObject) -> None:
        if shared.offered is obj or shared.offered_filling is obj:
            shared.offered, shared.offered_filling = None, None
            shared.not_before_s = trio.current_time() + OFFER_AGAIN_S

    # -- the end

    def is_filling(self, oid: bytes) -> bool:
        """Whether the file of an object is lent while it is being filled."""
        return any(self._inodes[inode].filling for inode in self._lent.get(oid, ()))

    def end(self, inode: int, shared: CopiedInode) -> None:
        """Answer the READs of an inode here again; its file may be lent anew if it is whole then."""
        shared.offered = shared.offered_filling = None
        self._end(inode, shared)

    def _end(self, inode: int, shared: CopiedInode) -> None:
        if shared.lent is None:
            return
        self._kernel.take_back(inode)
        inodes = self._lent[shared.lent]
        inodes.remove(inode)
        self._lendings -= 1
        if not inodes:
            del self._lent[shared.lent]
        shared.lent, shared.filling = None, False

    def take_back(self, oid: bytes) -> None:
        """The file of an object is about to change, to move or to go: nothing is answered from it any more."""
        for inode in list(self._lent.get(oid, ())):
            self.end(inode, self._inodes[inode])

    def take_back_all(self) -> None:
        """The volume ends, or a cache directory does: nothing is answered from any file any more."""
        for inode, shared in self._inodes.items():
            self.end(inode, shared)


def _has_room(obj: CachedObject) -> bool:
    """Whether all of an object can be in its cache directory at once."""
    return obj.space is not None and obj.size <= obj.space.full_bytes
