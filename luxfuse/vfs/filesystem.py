"""The read-only POSIX tree, without FUSE: what the operations of `luxfuse.fuse` call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from luxfuse.cache.cached import Buffer
from luxfuse.cache.page_cache import PageCache
from luxfuse.core.names import NAME_MAX_BYTES
from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE, Entry
from luxfuse.types import Kind
from luxfuse.vfs.attributes import Defaults, Stat, stat_of
from luxfuse.vfs.files import BadHandle, Files
from luxfuse.vfs.namespace import Namespace, NotADirectory, Stale

XATTR_PREFIX = b"user.luxfuse."
XATTRS = (b"version", b"cached_bytes", b"tier", b"state")
BATCH = 256
"""Entries read from the index at once; a READDIRPLUS of Linux 6.18 takes about 200."""
LISTINGS_REMEMBERED = 10_000


class NoSuchAttribute(LuxError):
    """The extended attribute does not exist."""

    errno = 61  # ENODATA


class NameTooLong(LuxError):
    """No name is that long."""

    errno = 36  # ENAMETOOLONG


class NotALink(LuxError):
    """The inode is no symlink."""

    errno = 22  # EINVAL


@dataclass(slots=True)
class _DirectoryHandle:
    inode: int
    names: dict[int, bytes]
    """Where to go on after each cookie handed out in the last two batches."""


class FileSystem:
    """One mount's tree. Errors are `LuxError` with the errno to return."""

    def __init__(self, *, namespace: Namespace, files: Files, cache: PageCache, defaults: Defaults, tier: str) -> None:
        self.namespace = namespace
        self.files = files
        self._cache = cache
        self._defaults = defaults
        self._tier = tier
        self._directories: dict[int, _DirectoryHandle] = {}
        self._next_handle = 1
        self._kernel_has: OrderedDict[int, int] = OrderedDict()

    # -- attributes

    def _stat(self, entry: Entry) -> Stat:
        return stat_of(entry, self._defaults, self.namespace.remaining_s(entry))

    async def lookup(self, parent: int, name: bytes) -> Stat:
        """Return a name's attributes. Raises `NoSuchName`, `NameTooLong`."""
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong(f"a name of {len(name)} bytes; {NAME_MAX_BYTES} are the most")
        if name == b".":
            return await self.getattr(parent)
        if name == b"..":
            above = ROOT_INODE if parent == ROOT_INODE else self.namespace.locate(parent)[0]
            return await self.getattr(above)
        return self._stat(await self.namespace.lookup(parent, name))

    async def getattr(self, inode: int) -> Stat:
        """Return an inode's attributes; of an open file those of the version that is open."""
        pinned = self.files.pinned(inode)
        if pinned is not None:
            try:
                _, _, entry = self.namespace.locate(inode)
            except Stale:
                return stat_of(pinned, self._defaults, 1.0)
            if self.namespace.is_fresh(entry):
                return self._stat(entry)
            return stat_of(entry, self._defaults, 0.0)
        return self._stat(await self.namespace.current(inode))

    async def readlink(self, inode: int) -> bytes:
        """Return a symlink's target."""
        entry = await self.namespace.current(inode)
        if entry.kind is not Kind.SYMLINK:
            raise NotALink(f"inode {inode} is no symlink")
        parent, name, _ = self.namespace.locate(inode)
        obj = self._cache.acquire(self.namespace.key(parent, name, Kind.SYMLINK), entry.version, min(entry.size, 4096))
        try:
            return bytes(await self._cache.read(obj, 0, 4096))
        finally:
            self._cache.release(obj)

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """Return one of the ``user.luxfuse.*`` attributes of a file."""
        if not name.startswith(XATTR_PREFIX) or inode == ROOT_INODE:
            raise NoSuchAttribute(f"no attribute {name!r}")
        parent, base, entry = self.namespace.locate(inode)
        if entry.kind is not Kind.FILE or name[len(XATTR_PREFIX) :] not in XATTRS:
            raise NoSuchAttribute(f"no attribute {name!r}")
        key = self.namespace.key(parent, base, entry.kind)
        cached = self._cache.cached_bytes(key, entry.version, entry.size) if entry.size else 0
        state = "cached" if cached == entry.size else "partial" if cached else "remote"
        values = {"version": entry.version, "cached_bytes": str(cached), "state": state,
                  "tier": self._tier if cached else "none"}
        return values[name[len(XATTR_PREFIX) :].decode()].encode()

    async def listxattr(self, inode: int) -> list[bytes]:
        """Return the names of the extended attributes."""
        if inode == ROOT_INODE or self.namespace.locate(inode)[2].kind is not Kind.FILE:
            return []
        return [XATTR_PREFIX + name for name in XATTRS]

    # -- directories

    async def opendir(self, inode: int) -> tuple[int, bool]:
        """Open a directory, listing it if need be; returns (handle, whether the kernel's cached one still holds)."""
        if inode != ROOT_INODE and (await self.namespace.current(inode)).kind is not Kind.DIRECTORY:
            raise NotADirectory(f"inode {inode} is no directory")
        serial = await self.namespace.listed(inode)
        holds = self._kernel_has.get(inode) == serial
        self._kernel_has[inode] = serial
        self._kernel_has.move_to_end(inode)
        if len(self._kernel_has) > LISTINGS_REMEMBERED:
            self._kernel_has.popitem(last=False)
        handle = self._next_handle
        self._next_handle = handle % 0xFFFF_FFFF + 1
        self._directories[handle] = _DirectoryHandle(inode, {})
        return handle, holds

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[bytes, Stat, int]]:
        """Yield (name, attributes, cookie of this entry) of the entries after ``cookie`` (0: from the start).

        Entries come in the byte order of their names, and the position is a name: whatever changes meanwhile, every
        entry that stays comes exactly once.
        """
        state = self._directory(handle)
        inode = state.inode
        if cookie == 0:
            yield b".", self._dot(inode), 1
        if cookie <= 1:
            above = ROOT_INODE if inode == ROOT_INODE else self._parent(inode)
            yield b"..", self._dot(above), 2
        after = b"" if cookie <= 2 else self._position(state, cookie)
        if len(state.names) > 4 * BATCH:
            state.names = {cookie: after}
        while True:
            batch = self.namespace.after(inode, after, BATCH)
            for name, entry in batch:
                state.names[entry.inode] = name
                yield name, self._stat(entry), entry.inode
            if len(batch) < BATCH:
                return
            after = batch[-1][0]

    def _directory(self, handle: int) -> _DirectoryHandle:
        state = self._directories.get(handle)
        if state is None:
            raise BadHandle(f"directory handle {handle} is not open")
        return state

    def _position(self, state: _DirectoryHandle, cookie: int) -> bytes:
        known = state.names.get(cookie)
        if known is None:
            known = self.namespace.position(cookie)
        return known

    def _parent(self, inode: int) -> int:
        try:
            return self.namespace.locate(inode)[0]
        except Stale:
            return ROOT_INODE

    def _dot(self, inode: int) -> Stat:
        entry = Entry(inode, Kind.DIRECTORY, 0, "", 0, 0.0)
        return stat_of(entry, self._defaults, 0.0)

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        self._directories.pop(handle, None)

    # -- files

    async def open(self, inode: int) -> int:
        """Open a file for reading; returns the handle."""
        return await self.files.open(inode)

    async def read(self, handle: int, offset: int, length: int) -> Buffer:
        """Read from a copied open."""
        return await self.files.read(handle, offset, length)

    def release(self, handle: int) -> None:
        """End a copied open."""
        self.files.release(handle)

    async def refresh(self, path: str) -> None:
        """Ask the store again about a path and what is directly below it. Raises `NoSuchName`, `StoreError`."""
        await self.namespace.refresh(path)


