"""A kernel for the vfs: keeps the table of backing files as the extension does, and fails a test that breaks its rules.

The rules are those of fs/fuse/iomode.c: while a passthrough open of an inode lives, every open is passthrough with the
same backing; while a cached open lives, none may be.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from luxfuse.vfs.filesystem import FileSystem

MARK = 1 << 63
MARK_FAST = 1 << 62
INODE_MASK = (1 << 48) - 1
READ_BYTES = 1 << 20


@dataclass
class _Backing:
    fd: int
    stamp_ns: int
    opens: int = 0
    retired: bool = False
    touched: bool = False
    fresh: bool = True
    notice: bool = False


class FakeKernel:
    """Implements `luxfuse.vfs.kernel.Kernel`, and what a kernel does with the handles: open, read, release."""

    def __init__(self, *, passthrough: bool = True) -> None:
        self.passthrough = passthrough
        self.refuses = False
        self.table: dict[int, _Backing] = {}
        self.cached_opens: Counter[int] = Counter()
        self.backing_of: dict[int, tuple[int, int]] = {}
        self.handles: dict[int, int] = {}
        self.registered = 0
        self.invalidated: list[tuple[int, bytes]] = []
        self.settled = 0
        self.most_unsettled = 0
        self.keeps_up = True
        self.on_first_open: Callable[[int], None] = lambda _inode: None
        self.on_drained: Callable[[int], None] = lambda _inode: None

    # -- what the vfs asks for

    def register(self, inode: int, fd: int, stamp_ns: int, valid_s: float, *, notice: bool = False) -> bool:
        """See `Kernel`."""
        assert self.passthrough
        if self.refuses:
            self.passthrough = False
            return False
        assert inode not in self.table, "a second backing id for an inode"
        assert os.fstat(fd).st_mtime_ns == stamp_ns, "a file is handed over that somebody else wrote to"
        self.table[inode] = _Backing(os.dup(fd), stamp_ns, fresh=valid_s > 0, notice=notice)
        self.registered += 1
        return True

    def acquire(self, inode: int, valid_s: float) -> int | None:
        """See `Kernel`."""
        backing = self.table.get(inode)
        if backing is None or (backing.retired and not backing.opens):
            return None
        backing.fresh = valid_s > 0
        return self._open_passthrough(inode, backing)

    def is_registered(self, inode: int) -> bool:
        """See `Kernel`."""
        return inode in self.table

    def retire(self, inode: int, *, only_idle: bool) -> bool:
        """See `Kernel`."""
        backing = self.table.get(inode)
        if backing is None:
            return True
        if backing.opens and only_idle:
            return False
        backing.retired = True
        if backing.opens:
            return False
        os.close(self.table.pop(inode).fd)
        return True

    def is_intact(self, inode: int) -> bool:
        """See `Kernel`."""
        backing = self.table.get(inode)
        return backing is not None and os.fstat(backing.fd).st_mtime_ns == backing.stamp_ns

    def take_touched(self) -> list[int]:
        """See `Kernel`."""
        touched = [inode for inode, backing in self.table.items() if backing.touched]
        for inode in touched:
            self.table[inode].touched = False
        return touched

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """See `Kernel`."""
        self.invalidated.append((parent, name))
        self.most_unsettled = max(self.most_unsettled, len(self.invalidated) - self.settled)

    async def settle(self) -> bool:
        """See `Kernel`; ``keeps_up`` False: it never forgets in time."""
        await trio.lowlevel.checkpoint()
        if self.keeps_up:
            self.settled = len(self.invalidated)
        return self.keeps_up

    # -- what the kernel does

    def _open_passthrough(self, inode: int, backing: _Backing) -> int:
        assert self.cached_opens[inode] == 0, f"EIO: passthrough open of inode {inode} while cached ones live"
        st = os.fstat(backing.fd)
        known = self.backing_of.setdefault(inode, (st.st_dev, st.st_ino))
        assert known == (st.st_dev, st.st_ino), f"EIO: another backing file for inode {inode}"
        backing.opens += 1
        backing.touched = True
        return MARK | MARK_FAST | inode

    async def open(self, fs: FileSystem, inode: int) -> int:
        """Open as the lane does where it can, else by asking; returns a handle for the methods below."""
        backing = self.table.get(inode)
        if backing is not None and not backing.retired and backing.fresh and (backing.opens or self.is_intact(inode)):
            handle = self._open_passthrough(inode, backing)
            if backing.notice:
                backing.notice = False
                self.on_first_open(inode)
            return handle
        handle = await fs.open(inode)
        if not handle & MARK:
            assert handle not in self.handles, "a handle number in use was given again"
            backing = self.table.get(inode)
            assert backing is None or not backing.opens, f"EIO: cached open of inode {inode} while passthrough ones live"
            self.cached_opens[inode] += 1
            self.handles[handle] = inode
        return handle

    async def read(self, fs: FileSystem, handle: int, offset: int, length: int) -> bytes:
        """Read at most 1 MiB."""
        assert length <= READ_BYTES
        if handle & MARK_FAST:
            return os.pread(self.table[handle & INODE_MASK].fd, length, offset)
        return bytes(await fs.read(handle, offset, length))

    async def read_all(self, fs: FileSystem, handle: int) -> bytes:
        """Read to the end."""
        parts = []
        offset = 0
        while part := await self.read(fs, handle, offset, READ_BYTES):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def release(self, fs: FileSystem, handle: int) -> None:
        """Close."""
        if not handle & MARK_FAST:
            inode = self.handles.pop(handle)
            self.cached_opens[inode] -= 1
            fs.release(handle)
            return
        inode = handle & INODE_MASK
        backing = self.table[inode]
        backing.opens -= 1
        if not backing.opens:
            del self.backing_of[inode]
            if backing.retired:
                os.close(self.table.pop(inode).fd)
                self.on_drained(inode)

    def is_passthrough(self, handle: int) -> bool:
        """Whether an open is served by the kernel alone."""
        return bool(handle & MARK_FAST)
