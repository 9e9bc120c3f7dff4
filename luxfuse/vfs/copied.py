"""Opens that are copied: the kernel has each READ and WRITE of them answered by the daemon.

The lanes answer READs of those whose file they are lent (`vfs.lending`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from luxfuse.cache.cached import CachedObject
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.staged import StagedBytes
from luxfuse.core.readahead import Sequence
from luxfuse.core.spans import pages_of
from luxfuse.errors import NotFound, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.types import Buffer
from luxfuse.vfs.ahead import FillBehind
from luxfuse.vfs.errors import BadHandle, Stale
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.lending import CopiedInode, Lendings
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.streaming import StreamsAhead
from luxfuse.vfs.will import CopiedFact, Will


@dataclass(slots=True, eq=False)
class _Handle:
    inode: int
    shared: CopiedInode
    sequence: Sequence
    writing: bool

    @property
    def obj(self) -> CachedObject | None:
        """The object that is read just now, if it is one."""
        return self.shared.obj if self.shared.staged is None else None


class CopiedOpens:
    """The copied opens of one mount. No inode has these and opens in passthrough at once."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: PageCache,
        kernel: Kernel,
        behind: FillBehind,
        readahead_bytes: int,
        nursery: trio.Nursery,
        will: Will | None = None,
    ) -> None:
        self._will = will or Will(None, 0)
        self._namespace = namespace
        self._cache = cache
        self._behind = behind
        self._streams = StreamsAhead(cache=cache, most_bytes=min(readahead_bytes, cache.budget.limit_bytes * 3 // 4))
        self._readahead_bytes = readahead_bytes
        self._inodes: dict[int, CopiedInode] = {}
        self._handles: dict[int, _Handle] = {}
        self._next_handle = 1
        self._deferred: dict[str, int] = {}
        """Inodes that are read, by the key of an object that is to be removed afterwards."""
        self.lent = Lendings(cache=cache, kernel=kernel, behind=behind, nursery=nursery, inodes=self._inodes)
        self._closed: Callable[[int], None] = _no_listener
        self.opened = self.stale_reads = 0
        """Opens, and reads that found the object replaced: both rise from the start on."""

    def on_closed(self, closed: Callable[[int], None]) -> None:
        """Have ``closed`` called with an inode whose last copied open is gone.

        The listener is made later: it needs the files that these opens are a part of.
        """
        self._closed = closed

    def __contains__(self, inode: int) -> bool:
        return inode in self._inodes

    def get(self, inode: int) -> CopiedInode | None:
        """Return the state that the copied opens of an inode share; None if there are none."""
        return self._inodes.get(inode)

    @property
    def any_open(self) -> bool:
        """Whether any file is open for copying."""
        return bool(self._handles)

    # -- open, read and release

    def open(self, entry: Entry, obj: CachedObject | None, *, writing: bool = False) -> int:
        """Open an inode, for its cached object or its staging file; returns the handle's number."""
        shared = self._inodes.get(entry.inode)
        if shared is None:
            if obj is not None:
                obj = self._cache.acquire(obj.record.key, obj.record.version, obj.size)
            shared = self._inodes[entry.inode] = CopiedInode(entry, obj)
            self._note(entry.inode, shared)
        while (number := self._next_handle) in self._handles:
            self._next_handle = number % 0xFFFF_FFFF + 1
        self._next_handle = number % 0xFFFF_FFFF + 1
        self._add(number, entry.inode, shared, writing)
        self.opened += 1
        return number

    def _add(self, number: int, inode: int, shared: CopiedInode, writing: bool) -> None:
        shared.opens += 1
        self._handles[number] = _Handle(inode, shared, Sequence(self._readahead_bytes), writing)

    def _note(self, inode: int, shared: CopiedInode) -> None:
        if self._will.wanted:
            key = shared.obj.record.key if shared.obj is not None else None
            self._will.copied(inode, CopiedFact(shared.entry, key, shared.nameless))

    def lose_name(self, inode: int) -> None:
        """The inode was removed."""
        shared = self._inodes.get(inode)
        if shared is not None:
            shared.nameless = True
            self._note(inode, shared)

    def inherit(self, number: int, inode: int, fact: CopiedFact, *, writing: bool) -> None:
        """Take over an open that a predecessor has answered."""
        shared = self._inodes.get(inode)
        if shared is None:
            obj = None if fact.key is None else self._cache.acquire(fact.key, fact.entry.version, fact.entry.size)
            shared = self._inodes[inode] = CopiedInode(fact.entry, obj, nameless=fact.nameless)
            self._note(inode, shared)
        self._add(number, inode, shared, writing)

    async def read(self, handle: int, offset: int, length: int) -> Buffer:
        """Return up to ``length`` bytes of a copied open. Raises `BadHandle`, `Stale`, `StoreError`."""
        state = self._handle(handle)
        if state.shared.staged is not None:
            return await state.shared.staged.read(offset, length)
        obj = state.shared.obj
        if obj is None:
            return b""
        state.sequence.advance(offset, length, obj.size)
        if state.sequence.streams:
            state.shared.streamed_s = trio.current_time()
        try:
            if not obj.whole:
                self._streams.catch_up(state)
                wanted = pages_of(offset, min(length, obj.size - offset))
                self._cache.start(obj, wanted)
                self._streams.moved_on(state)
                self._behind.consider(obj)
                self.lent.asked_for(state.inode, state.shared, obj, wanted)
            else:
                await self.lent.offer(state.inode, state.shared, obj)
            return await self._cache.read(obj, offset, length, early=True)
        except (VersionChanged, NotFound):
            self._namespace.belief.expire(state.inode)
            self.stale_reads += 1
            raise Stale(f"{obj.record.key!r} changed in the under-store while it was open") from None

    def release(self, handle: int) -> None:
        """End a copied open."""
        state = self._handles.pop(handle, None)
        if state is None:
            raise BadHandle(f"file handle {handle} is not open")
        self._streams.drop(state)
        state.shared.opens -= 1
        if state.shared.opens == 0:
            self.lent.end(state.inode, state.shared)
            del self._inodes[state.inode]
            self._will.not_copied(state.inode)
            if state.shared.obj is not None:
                self._cache.release(state.shared.obj)
            self._closed(state.inode)

    def opened_as(self, handle: int) -> tuple[int, bool]:
        """Return (inode, whether it is open for writing) of a copied open. Raises `BadHandle`."""
        state = self._handle(handle)
        return state.inode, state.writing

    def _handle(self, handle: int) -> _Handle:
        state = self._handles.get(handle)
        if state is None:
            raise BadHandle(f"file handle {handle} is not open")
        return state

    # -- changes of a file that is open

    def attach_staged(self, inode: int, staged: StagedBytes) -> None:
        """The file begins to be written to: its opens read the staging file from now on."""
        shared = self._inodes.get(inode)
        if shared is not None:
            self.lent.end(inode, shared)
            shared.staged = staged

    def detach_staged(self, inode: int, entry: Entry, key: str) -> None:
        """The file is an object of the cache again (or has to be fetched): its opens read that."""
        shared = self._inodes.get(inode)
        if shared is not None:
            shared.staged, shared.entry = None, entry
            if shared.obj is not None:
                self._cache.release(shared.obj)
            shared.obj = self._cache.acquire(key, entry.version, entry.size) if entry.size else None
            self._note(inode, shared)

    def moved(self, inode: int, entry: Entry, key: str, *, kept: bool) -> None:
        """The inode has another key or version now; ``kept``: the cached object of it is the same."""
        shared = self._inodes.get(inode)
        if shared is not None:
            self.lent.end(inode, shared)
            shared.entry = entry
            if shared.obj is not None and not kept:
                self._cache.release(shared.obj)
                shared.obj = self._cache.acquire(key, entry.version, entry.size)
            self._note(inode, shared)

    # -- objects that must stay for their readers

    def needs_store(self, inode: int) -> bool:
        """Whether an open of the inode will need pages that only the store has."""
        shared = self._inodes.get(inode)
        if shared is None:
            return False
        if shared.staged is not None:
            return not shared.staged.complete
        return shared.obj is not None and not shared.obj.whole

    def defer(self, key: str, inode: int) -> None:
        """The object is to be removed once the inode is not open any more."""
        if inode in self._inodes:
            self._deferred[key] = inode

    def is_deferred(self, key: str) -> bool:
        """Whether the object must stay because a program still reads it."""
        inode = self._deferred.get(key)
        if inode is not None and inode not in self._inodes:
            del self._deferred[key]
            return False
        return inode is not None


def _no_listener(_inode: int) -> None:
    pass
