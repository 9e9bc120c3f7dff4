"""A kernel for the vfs: keeps the table of backing files as the extension does, and fails a test that breaks its rules.

The rules are those of fs/fuse/iomode.c: while a passthrough open of an inode lives, every open is passthrough with the
same backing; while a cached open lives, none may be.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from luxfuse.core.ledger import BLOCK_BYTES, allocated_bytes
from luxfuse.core.spans import pages_of
from luxfuse.errors import LuxError
from luxfuse.vfs.attributes import Caller, Stat
from luxfuse.vfs.errors import NoSuchName
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Ref

MARK = 1 << 63
MARK_FAST = 1 << 62
MARK_WRITE = 1 << 58
INODE_MASK = (1 << 48) - 1
READ_BYTES = 1 << 20
CALLER = Caller(uid=0, gid=0, pid=1, umask=0o022)


@dataclass
class _Offer:
    stat: Stat
    since_s: float
    until_s: float
    only_name: bool


@dataclass
class _Missing:
    names: set[bytes]
    since_s: float = 0.0
    until_s: float = 0.0


@dataclass
class _Backing:
    fd: int
    """-1: the file is lost, and reads ask."""
    stamp_ns: int
    opens: int = 0
    retired: bool = False
    touched: bool = False
    fresh: bool = True
    notice: bool = False
    writers: list[int] = field(default_factory=list)
    """Descriptors of the live opens for writing: as with the real kernel, they count as writers of the file."""


class FakeKernel:
    """Implements `luxfuse.vfs.kernel.Kernel`, and what a kernel does: create, open, read, write, flush, release."""

    def __init__(
        self, *, passthrough: bool = True, grants: bool = False, opens: Mapping[int, tuple[int, int]] | None = None
    ) -> None:
        """``grants``: it writes to files that are registered within the room that it is granted, as the data plane does.

        ``opens``: (opens, those that write) of files in passthrough that a predecessor has left, by inode.
        """
        self.left = dict(opens or {})
        self.not_inherited: set[int] = set()
        """Inodes that cannot be taken over."""
        self.hands_over = passthrough
        self.grants: dict[int, int] | None = {} if grants else None
        """Room that it may fill, by inode."""
        self.refuses = False
        self.table: dict[int, _Backing] = {}
        self.cached_opens: Counter[int] = Counter()
        self.backing_of: dict[int, tuple[int, int]] = {}
        self.handles: dict[int, int] = {}
        self.registered = 0
        self.expected: set[int] = set()
        """Inodes of which opens may wait for `arrived`."""
        self.lent: dict[int, int] = {}
        """Files that copied opens are read from without asking, by inode."""
        self.filled: dict[int, set[int]] = {}
        """Of those that are still being filled, the pages that are there."""
        self.lendings = 0
        self.answers = True
        self.offered: dict[tuple[int, bytes], _Offer] = {}
        self.missing: dict[int, _Missing] = {}
        """Directories from which all other names are missing, by inode."""
        self.clock: Callable[[], float] = lambda: 0.0
        self.answered = 0
        """Look-ups and questions for attributes that lanes would have answered."""
        self.invalidated: list[tuple[int, bytes]] = []
        self.invalidated_inodes: list[int] = []
        self.settled = 0
        self.most_unsettled = 0
        self.keeps_up = True
        self._first_open: Callable[[int], None] = lambda _inode: None
        self._drained: Callable[[int], None] = lambda _inode: None

    # -- what the vfs asks for

    def on_first_open(self, opened: Callable[[int], None]) -> None:
        self._first_open = opened

    def on_drained(self, drained: Callable[[int], None]) -> None:
        self._drained = drained

    def accepts(self, device: int) -> bool:
        return True

    def expect(self, inode: int) -> None:
        self.expected.add(inode)

    def arrived(self, inode: int) -> None:
        self.expected.discard(inode)

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        assert self.hands_over
        if self.refuses:
            self.hands_over = False
            return False
        assert inode not in self.table, "a second backing id for an inode"
        assert os.fstat(fd).st_mtime_ns == stamp_ns, "a file is handed over that somebody else wrote to"
        self.table[inode] = _Backing(os.dup(fd), stamp_ns, fresh=valid_s > 0, notice=notice)
        self.registered += 1
        return True

    def inherit(self, inode: int, fd: int, stamp_ns: int, *, retired: bool) -> bool:
        if inode in self.not_inherited:
            return False
        opens, writers = self.left.pop(inode)
        backing = self.table[inode] = _Backing(os.dup(fd) if fd >= 0 else -1, stamp_ns, opens, retired)
        if fd < 0:
            return True
        backing.writers = [os.open(f"/proc/self/fd/{fd}", os.O_RDWR) for _ in range(writers)]
        st = os.fstat(fd)
        self.backing_of[inode] = (st.st_dev, st.st_ino)
        return True

    def disinherit(self, inode: int) -> None:
        del self.left[inode]

    def lend(self, inode: int, fd: int, filling_bytes: int = 0) -> bool:
        assert inode not in self.lent, "lent twice"
        assert self.cached_opens[inode] > 0, "lent, though it is not open for copying"
        self.lent[inode] = os.dup(fd)
        self.lendings += not filling_bytes
        if filling_bytes:
            assert os.fstat(fd).st_size == filling_bytes
            self.filled[inode] = set()
        return True

    def fill(self, inode: int, pages: range) -> None:
        self.filled[inode].update(pages)

    def take_back(self, inode: int) -> None:
        if (fd := self.lent.pop(inode, None)) is not None:
            os.close(fd)
        self.filled.pop(inode, None)

    def acquire(self, inode: int, valid_s: float, *, writing: bool = False) -> int | None:
        backing = self.table.get(inode)
        if backing is None or (backing.retired and not backing.opens):
            return None
        backing.fresh = valid_s > 0
        handle = self._open_passthrough(inode, backing)
        if not writing:
            return handle
        backing.writers.append(os.open(f"/proc/self/fd/{backing.fd}", os.O_RDWR))
        return handle | MARK_WRITE

    def released(self, inode: int) -> bool:
        """The real kernel closes the backing's writer before it asks, as `release` does."""
        if inode not in self.table:
            return False
        self._count_down(inode)
        return True

    def grant(self, inode: int, more_bytes: int) -> bool:
        if self.granted(inode) is None or self.grants is None:
            return False
        self.grants[inode] = self.grants.get(inode, 0) + more_bytes
        return True

    def granted(self, inode: int, *, take_back: bool = False) -> int | None:
        backing = self.table.get(inode)
        if self.grants is None or backing is None or not backing.writers:
            return None
        if take_back:
            self.grants[inode] = 0
        return self.grants.get(inode, 0)

    def restamp(self, inode: int, stamp_ns: int, valid_s: float) -> None:
        backing = self.table.get(inode)
        if backing is not None:
            backing.stamp_ns = stamp_ns if stamp_ns >= 0 else backing.stamp_ns
            backing.fresh = valid_s > 0

    def is_registered(self, inode: int) -> bool:
        return inode in self.table

    def retire(self, inode: int, *, only_idle: bool) -> bool:
        backing = self.table.get(inode)
        if backing is None:
            return True
        if backing.opens and only_idle:
            return False
        backing.retired = True
        if backing.opens:
            return False
        _close(self.table.pop(inode).fd)
        return True

    def is_intact(self, inode: int) -> bool:
        backing = self.table.get(inode)
        return backing is not None and backing.fd >= 0 and os.fstat(backing.fd).st_mtime_ns == backing.stamp_ns

    def take_touched(self) -> list[int]:
        touched = [inode for inode, backing in self.table.items() if backing.touched]
        for inode in touched:
            self.table[inode].touched = False
        return touched

    def offer(self, parent: int, name: bytes, stat: Stat, *, only_name: bool, ahead: bool) -> bool:
        assert stat.ttl_s > 0
        assert not stat.changing
        self.offered = {key: offer for key, offer in self.offered.items() if offer.stat.inode != stat.inode}
        self.offered[parent, name] = _Offer(stat, self.clock(), self.clock() + stat.ttl_s, only_name)
        return True

    def knows(self, parent: int, name: bytes) -> bool:
        return self._valid(self.offered.get((parent, name))) is not None

    def _valid(self, offer: _Offer | None) -> _Offer | None:
        # A clock that was set back does not count: the lanes' clock is monotonic, and what was said holds for its time.
        return offer if offer is not None and offer.since_s <= self.clock() < offer.until_s else None

    def offer_missing(self, directory: int, names: Sequence[bytes] | None, *, answer_s: float, valid_s: float) -> bool:
        assert 0 < answer_s <= valid_s
        if names is not None:
            self.missing[directory] = _Missing(set(names))
        elif directory not in self.missing:
            return False
        known = self.missing[directory]
        known.since_s, known.until_s = self.clock(), self.clock() + answer_s
        return True

    def misses(self, directory: int, name: bytes) -> bool:
        """Whether the lanes answer that a name is missing."""
        known = self.missing.get(directory)
        return known is not None and known.since_s <= self.clock() < known.until_s and name not in known.names

    def revoke(self, parent: int, name: bytes) -> None:
        self.offered.pop((parent, name), None)
        if parent in self.missing:
            self.missing[parent].names.add(name)

    def revoke_missing(self, directory: int) -> None:
        self.missing.pop(directory, None)

    def revoke_below(self, directory: int) -> None:
        self.revoke_missing(directory)
        self.offered = {key: offer for key, offer in self.offered.items() if key[0] != directory}

    def revoke_all(self) -> None:
        self.offered.clear()
        self.missing.clear()

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        self.revoke(parent, name)
        self.invalidated.append((parent, name))
        self.most_unsettled = max(self.most_unsettled, len(self.invalidated) - self.settled)

    def invalidate_inode(self, inode: int) -> None:
        self.offered = {key: offer for key, offer in self.offered.items() if offer.stat.inode != inode}
        self.invalidated_inodes.append(inode)

    async def forgotten(self) -> bool:
        """``keeps_up`` False: it never forgets in time."""
        await trio.lowlevel.checkpoint()
        if self.keeps_up:
            self.settled = len(self.invalidated)
        return self.keeps_up

    # -- what the kernel does

    async def lookup(self, fs: FileSystem, parent: int, name: bytes) -> Stat:
        """Look a name up. What the lanes would answer must be what the file system does answer."""
        offer, missing = self._valid(self.offered.get((parent, name))), self.misses(parent, name)
        try:
            stat = await self._compared(offer, fs.lookup(parent, name))
        except NoSuchName:
            fs.answers.missed(parent)
            self.answered += missing
            raise
        assert not missing or not self.misses(parent, name), f"the lanes would have answered that {name!r} is missing"
        fs.answers.looked_up(parent, name)
        return stat

    async def getattr(self, fs: FileSystem, inode: int) -> Stat:
        """Ask for attributes, as `lookup`."""
        offers = (offer for offer in self.offered.values() if offer.stat.inode == inode and not offer.only_name)
        stat = await self._compared(self._valid(next(offers, None)), fs.getattr(inode))
        if (place := fs.namespace.places.place_of(inode)) is not None:
            fs.answers.asked(inode, *place)
        return stat

    async def _compared(self, offer: _Offer | None, asked: Awaitable[Stat]) -> Stat:
        error = None
        try:
            stat = await asked
        except LuxError as exc:
            error = exc
        if error is not None:
            assert offer is None, f"the lanes would have answered {offer}, not {error!r}"
            raise error
        if offer is not None:
            offer.stat.ttl_s = stat.ttl_s
            assert offer.stat == stat, "the lanes would have answered something else"
            self.answered += 1
        return stat

    def _open_passthrough(self, inode: int, backing: _Backing) -> int:
        assert self.cached_opens[inode] == 0, f"EIO: passthrough open of inode {inode} while cached ones live"
        if backing.fd >= 0:
            st = os.fstat(backing.fd)
            known = self.backing_of.setdefault(inode, (st.st_dev, st.st_ino))
            assert known == (st.st_dev, st.st_ino), f"EIO: another backing file for inode {inode}"
        backing.opens += 1
        backing.touched = True
        return MARK | MARK_FAST | inode

    async def open(self, fs: FileSystem, inode: int, flags: int = os.O_RDONLY) -> int:
        """Open as the lane does where it can, else by asking; returns a handle for the methods below."""
        backing = self.table.get(inode)
        plain = flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY
        usable = plain and backing is not None and not backing.retired and backing.fresh
        if usable and (backing.opens or self.is_intact(inode)):
            handle = self._open_passthrough(inode, backing)
            if backing.notice:
                backing.notice = False
                self._first_open(inode)
            return handle
        return self._opened(inode, await fs.open(inode, flags, CALLER))

    async def create(
        self, fs: FileSystem, parent: int, name: bytes, mode: int = 0o644, flags: int = os.O_RDWR | os.O_CREAT
    ) -> tuple[int, int]:
        """Create and open; returns (handle, inode)."""
        made = fs.create_now(parent, name, mode, flags, CALLER) if isinstance(fs, FileSystem) else None
        handle, stat = made or await fs.create(parent, name, mode, flags, CALLER)
        return self._opened(stat.inode, handle), stat.inode

    def _opened(self, inode: int, handle: int) -> int:
        if handle & MARK:
            assert handle & INODE_MASK == inode, "a handle of another inode"
            return handle
        assert handle not in self.handles, "a handle number in use was given again"
        backing = self.table.get(inode)
        assert backing is None or not backing.opens, f"EIO: cached open of inode {inode} while passthrough ones live"
        self.cached_opens[inode] += 1
        self.handles[handle] = inode
        return handle

    async def read(self, fs: FileSystem, handle: int, offset: int, length: int) -> bytes:
        """Read at most 1 MiB; what is copied is cut to the size that the attributes show, as the kernel does it.

        Bytes that came early are stored when this returns, so that tests know what is on disk.
        """
        assert length <= READ_BYTES
        if handle & MARK_FAST and (fd := self.table[handle & INODE_MASK].fd) >= 0:
            return os.pread(fd, length, offset)
        if handle & MARK_FAST:
            return bytes(await fs.read(ref_of(handle), offset, length))
        lent = self.lent.get(self.handles[handle])
        filled = self.filled.get(self.handles[handle])
        if filled is not None and not filled.issuperset(pages_of(offset, length)):
            lent = None
        data = bytes(await fs.read(ref_of(handle), offset, length)) if lent is None else os.pread(lent, length, offset)
        for obj in list(fs._cache.contents._live.values()) if isinstance(fs, FileSystem) else []:
            for flight in [flight for flight in obj.flights.values() if flight.data is not None]:
                await flight.done.wait()
        return data[: max(0, (await fs.getattr(self.handles[handle])).size - offset)]

    async def read_all(self, fs: FileSystem, handle: int) -> bytes:
        """Read to the end."""
        parts = []
        offset = 0
        while part := await self.read(fs, handle, offset, READ_BYTES):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    async def write(self, fs: FileSystem, handle: int, offset: int, data: bytes) -> None:
        """Write through a handle that was opened for writing."""
        if handle & MARK_FAST:
            assert handle & MARK_WRITE, "EBADF"
            if self.grants is not None:
                room = allocated_bytes(len(data)) + BLOCK_BYTES
                if self.grants.get(handle & INODE_MASK, 0) < room:
                    assert await fs.write(ref_of(handle), offset, data) == len(data)
                    return
                self.grants[handle & INODE_MASK] -= room
            assert os.pwrite(self.table[handle & INODE_MASK].writers[0], data, offset) == len(data)
            return
        for start in range(0, len(data), READ_BYTES):
            part = data[start : start + READ_BYTES]
            assert await fs.write(ref_of(handle), offset + start, part) == len(part)

    async def flush(self, fs: FileSystem, handle: int) -> None:
        """What close(2) of one descriptor does first; not asked for handles that only read."""
        if not handle & MARK_FAST or handle & MARK_WRITE:
            await self._flush(fs, ref_of(handle))

    async def _flush(self, fs: FileSystem, ref: Ref) -> None:
        """Ask for an answer that waits for the journal alone first, as `luxfuse.fuse.prompt` does."""
        ended, errors = trio.Event(), []

        def done(error: Exception | None) -> None:
            errors.append(error)
            ended.set()

        if not isinstance(fs, FileSystem) or not fs.flush_soon(ref, done):
            await fs.flush(ref)
            return
        await ended.wait()
        if errors[0] is not None:
            raise errors[0]

    async def fsync(self, fs: FileSystem, handle: int, *, datasync: bool = False) -> None:
        """fsync(2) or fdatasync(2)."""
        await fs.fsync(ref_of(handle), datasync)

    async def release(self, fs: FileSystem, handle: int) -> None:
        """End the open at its last close."""
        if not handle & MARK_FAST:
            inode = self.handles.pop(handle)
            self.cached_opens[inode] -= 1
            await fs.release(ref_of(handle))
        elif handle & MARK_WRITE:
            os.close(self.table[handle & INODE_MASK].writers.pop())
            if self.grants is not None and not self.table[handle & INODE_MASK].writers:
                self.grants.pop(handle & INODE_MASK, None)
            await fs.release(ref_of(handle))
        else:
            self._count_down(handle & INODE_MASK)

    async def close(self, fs: FileSystem, handle: int) -> None:
        """Flush and release, as close(2) of the only descriptor. Raises what flush says, after the release."""
        try:
            await self.flush(fs, handle)
        finally:
            await self.release(fs, handle)

    def _count_down(self, inode: int) -> None:
        backing = self.table[inode]
        assert backing.opens > 0, "more releases than opens"
        backing.opens -= 1
        assert backing.opens >= len(backing.writers)
        if not backing.opens:
            self.backing_of.pop(inode, None)
            if backing.retired:
                _close(self.table.pop(inode).fd)
                self._drained(inode)

    def is_passthrough(self, handle: int) -> bool:
        """Whether an open is served by the kernel alone."""
        return bool(handle & MARK_FAST)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def ref_of(handle: int) -> Ref:
    """Return what the file system is told of a handle."""
    return Ref(handle & INODE_MASK, None) if handle & MARK_FAST else Ref(None, handle)
