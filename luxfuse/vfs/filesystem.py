"""The POSIX tree, without FUSE: what the operations of `luxfuse.fuse` call."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from luxfuse.cache.page_cache import PageCache
from luxfuse.core.names import NAME_MAX_BYTES
from luxfuse.core.rules import PathPolicies
from luxfuse.errors import StoreError
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Buffer, Kind
from luxfuse.vfs.attributes import AttributeChanges, Caller, Defaults, Stat, stat_of
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import (
    BadHandle,
    NameTooLong,
    NoSuchAttribute,
    NoSuchName,
    NotADirectory,
    NotALink,
    NotPermitted,
    NotSupported,
    ReadOnly,
    Stale,
)
from luxfuse.vfs.files import Files
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.links import Links
from luxfuse.vfs.moves import Moves
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.replicas import PromisedReplicas
from luxfuse.vfs.room import Room
from luxfuse.vfs.tree import Tree
from luxfuse.vfs.writer import Writer

XATTR_PREFIX = b"user.luxfuse."
SELINUX = b"security.selinux"
XATTRS = (b"version", b"cached_bytes", b"tier", b"state")
OTHERS = 0o077
"""Of a mode: what is for the group and everybody else."""
BATCH = 256
"""Entries read from the index at once; a READDIRPLUS of Linux 6.18 takes about 200."""
LISTINGS_REMEMBERED = 10_000
POSITIONS_REMEMBERED = 256


@dataclass(slots=True)
class _DirectoryHandle:
    inode: int
    names: dict[int, bytes]
    """Where to go on after each cookie handed out lately."""
    others: dict[int, bytes]
    """The same of all handles of the directory: the kernel goes on with one where it has cached what another returned."""


class FileSystem:
    """One mount's tree. Errors are `LuxError` with the errno to return."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        descriptions: Descriptions,
        files: Files,
        cache: PageCache,
        defaults: Defaults,
        entries: DirtyEntries,
        writer: Writer,
        notes: Notes,
        promises: Promises,
        room: Room,
        replicas: PromisedReplicas,
        tree: Tree,
        moves: Moves,
        links: Links,
        policies: PathPolicies,
    ) -> None:
        self.namespace = namespace
        self._descriptions = descriptions
        self.files = files
        self._dirty = entries
        self._writer = writer
        self._notes = notes
        self._promises = promises
        self._room = room
        self._replicas = replicas
        self._tree = tree
        self._moves = moves
        self.links = links
        self._policies = policies
        self._cache = cache
        self._defaults = defaults
        self._directories: dict[int, _DirectoryHandle] = {}
        self._next_handle = 1
        self._positions: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        moves.on_renamed = self._forget_positions
        self._kernel_has: OrderedDict[int, int] = OrderedDict()

    # -- attributes

    def _stat(self, entry: Entry) -> Stat:
        dirty = self._dirty.get(entry.inode)
        if dirty is not None:
            return self._stat_dirty(dirty, entry)
        return self._shown(entry, self.namespace.remaining_s(entry))

    def _shown(self, entry: Entry, ttl_s: float) -> Stat:
        """What is told of an entry: a mode that nobody knows lets nobody in but the owner, and is asked for again."""
        stat = stat_of(entry, self._defaults, self._descriptions.valid_s(entry, ttl_s))
        if self._descriptions.must_hide(entry):
            stat.mode &= ~OTHERS
        return stat

    def _stat_dirty(self, dirty: Dirty, entry: Entry) -> Stat:
        """What is being written to has the size and times of its staging file."""
        stat = self._shown(entry, self.namespace.remaining_s(entry))
        source = dirty.source
        if source is not None and (st := source.bytes.stat()) is not None:
            stat.size, stat.mtime_ns = st.st_size, st.st_mtime_ns
            # Its ctime and atime in the staging directory move when we rename and read it, too.
            stat.ctime_ns = max(stat.ctime_ns, st.st_mtime_ns)
            stat.blocks = st.st_blocks if source.bytes.complete else (st.st_size + 511) >> 9
            stat.changing = True
        if dirty.place is None:
            stat.nlink, stat.ttl_s = 0, 0.0
        return stat

    async def lookup(self, parent: int, name: bytes) -> Stat:
        """Return a name's attributes. Raises `NoSuchName`, `NameTooLong`."""
        self._check_name(name)
        if name == b".":
            return await self.getattr(parent)
        if name == b"..":
            above = ROOT_INODE if parent == ROOT_INODE else self.namespace.locate(parent)[0]
            return await self.getattr(above)
        entry = await self.namespace.lookup(parent, name)
        return self._stat(await self._descriptions.known(parent, name, entry))

    async def getattr(self, inode: int) -> Stat:
        """Return an inode's attributes; of an open file those of the version that is open."""
        dirty = self._dirty.get(inode)
        if dirty is not None:
            return self._stat_dirty(dirty, self._notes.row(dirty))
        if (removed := self._tree.removed_directory(inode)) is not None:
            gone = self._shown(removed, 0.0)
            gone.nlink = 0
            return gone
        pinned = self.files.pinned(inode)
        if pinned is not None:
            return await self._stat_open(inode, pinned)
        entry = await self.namespace.current(inode)
        if inode != ROOT_INODE:
            entry = await self._described(inode)
        return self._stat(entry)

    async def _described(self, inode: int) -> Entry:
        """Return the entry of an inode with its attributes, as far as they can be had. Raises `Stale`."""
        parent, name, entry = self.namespace.locate(inode)
        if not self._descriptions.lacks(parent, entry):
            await self._descriptions.ask(parent, name, entry)
            return self.namespace.locate(inode)[2]
        try:
            await self._descriptions.known(parent, name, entry)
        except NoSuchName:
            raise Stale(f"{name!r} was removed") from None
        return self.namespace.locate(inode)[2]

    async def _stat_open(self, inode: int, pinned: Entry) -> Stat:
        try:
            entry = await self._described(inode)
        except Stale:
            gone = self._shown(pinned, 1.0)
            gone.nlink = 0
            return gone
        except StoreError:  # an outage
            return self._shown(pinned, 0.0)
        if self._dirty.get(inode) is not None:
            return await self.getattr(inode)
        return self._stat(entry) if self.namespace.is_fresh(entry) else self._shown(entry, 0.0)

    async def readlink(self, inode: int) -> bytes:
        """Return a symlink's target."""
        entry = await self.namespace.current(inode)
        if entry.kind is not Kind.SYMLINK:
            raise NotALink(f"inode {inode} is no symlink")
        dirty = self._dirty.get(inode)
        if dirty is not None and dirty.target:
            return dirty.target
        parent, name, _ = self.namespace.locate(inode)
        obj = self._cache.acquire(self.namespace.key(parent, name, Kind.SYMLINK), entry.version, min(entry.size, 4096))
        try:
            return bytes(await self._cache.read(obj, 0, 4096))
        finally:
            self._cache.release(obj)

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """Return an extended attribute: one that was set, or one of ``user.luxfuse.*`` of a file."""
        if name.startswith(XATTR_PREFIX):
            return self._own_xattr(inode, name[len(XATTR_PREFIX) :])
        if name == b"security.capability":  # the kernel asks, and would pass on any other error
            raise NoSuchAttribute(f"no attribute {name!r}")
        if name.startswith(b"system."):
            raise NotSupported(f"{name!r}: attributes of that kind are not kept")
        # `ls -l` looks for security.selinux in every file; that is not worth a request to the store for each.
        value = (await self._tree.xattrs(inode, ask=not name.startswith(b"security."))).get(os.fsdecode(name))
        if value is None and name == SELINUX:  # no label is ever made here: `ls` then leaves the other files alone
            raise NotSupported("no security labels are kept here")
        if value is None:
            raise NoSuchAttribute(f"no attribute {name!r}")
        return value

    def _own_xattr(self, inode: int, name: bytes) -> bytes:
        if inode == ROOT_INODE or name not in XATTRS:
            raise NoSuchAttribute(f"no attribute {name!r}")
        parent, base, entry = self.namespace.locate(inode)
        if entry.kind is not Kind.FILE:
            raise NoSuchAttribute(f"no attribute {name!r}")
        dirty = self._dirty.get(inode)
        tier: str
        if dirty is not None and dirty.source is not None:
            cached, state, tier = dirty.source.bytes.size, "dirty", self._room.tier_of(dirty)
        else:
            key = self.namespace.key(parent, base, entry.kind)
            cached, tier = self._cache.cached_bytes(key, entry.version, entry.size) if entry.size else (0, "none")
            state = "cached" if cached == entry.size else "partial" if cached else "remote"
        values = {"version": entry.version, "cached_bytes": str(cached), "state": state, "tier": tier}
        return values[name.decode()].encode()

    async def listxattr(self, inode: int) -> list[bytes]:
        """Return the names of the extended attributes that programs have set.

        Not those of ``user.luxfuse.*``: a program that copies attributes would write them onto its copy. As for `getattr`,
        nothing is asked for where objects are not thought to carry attributes: `ls -l` lists them for each file.
        """
        ask = False
        if self._dirty.get(inode) is None and inode != ROOT_INODE:
            parent, _, entry = self.namespace.locate(inode)
            ask = self._descriptions.lacks(parent, entry)
        found = [os.fsencode(name) for name in await self._tree.xattrs(inode, ask=ask)]
        return [name for name in found if not name.startswith(XATTR_PREFIX)]

    async def setxattr(self, inode: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute; it travels in the object's metadata."""
        if name.startswith(XATTR_PREFIX):
            raise NotPermitted(f"{name!r} is read-only")
        self._check_inode_writable(inode)
        if not name.startswith((b"user.", b"trusted.", b"security.")):
            raise NotSupported(f"{name!r}: attributes of that kind are not kept")
        await self._tree.set_xattrs(inode, {**await self._tree.xattrs(inode), os.fsdecode(name): value})

    async def removexattr(self, inode: int, name: bytes) -> None:
        """Remove an extended attribute."""
        if name.startswith(XATTR_PREFIX):
            raise NotPermitted(f"{name!r} is read-only")
        self._check_inode_writable(inode)
        xattrs = await self._tree.xattrs(inode)
        if xattrs.pop(os.fsdecode(name), None) is None:
            raise NoSuchAttribute(f"no attribute {name!r}")
        await self._tree.set_xattrs(inode, xattrs)

    # -- directories

    async def opendir(self, inode: int) -> tuple[int, bool]:
        """Open a directory, listing it if need be; returns (handle, whether the kernel's cached one still holds)."""
        if self._tree.removed_directory(inode) is not None:
            return self._new_directory_handle(inode), False
        if inode != ROOT_INODE and (await self.namespace.current(inode)).kind is not Kind.DIRECTORY:
            raise NotADirectory(f"inode {inode} is no directory")
        serial = await self.namespace.listed(inode)
        await self._descriptions.judge(inode)
        holds = self._kernel_has.get(inode) == serial
        self._kernel_has[inode] = serial
        self._kernel_has.move_to_end(inode)
        if len(self._kernel_has) > LISTINGS_REMEMBERED:
            self._kernel_has.popitem(last=False)
        return self._new_directory_handle(inode), holds

    def _new_directory_handle(self, inode: int) -> int:
        handle = self._next_handle
        self._next_handle = handle % 0xFFFF_FFFF + 1
        self._directories[handle] = _DirectoryHandle(inode, {}, self._positions.setdefault(inode, {}))
        self._positions.move_to_end(inode)
        if len(self._positions) > POSITIONS_REMEMBERED:
            self._positions.popitem(last=False)
        return handle

    def directory_of(self, handle: int) -> int:
        """Return the inode of an open directory. Raises `BadHandle`."""
        return self._directory(handle).inode

    def name_at(self, handle: int, cookie: int) -> bytes:
        """Return the name that a cookie of an open directory stands for. Raises `BadHandle`, `Stale`."""
        return self._position(self._directory(handle), cookie)

    def relist(self, inode: int) -> None:
        """What the kernel has cached of a directory's listing does not hold any more."""
        self._kernel_has.pop(inode, None)

    def close_idle(self) -> bool:
        """Give up what is kept for files that are not open; returns whether no file and no directory is open."""
        return self.files.retire_all_idle() and not self.files.any_copied and not self._directories

    def root_stat(self) -> Stat:
        """Return the attributes of the root."""
        return self._stat(self.namespace.root)

    def readdir(self, handle: int, cookie: int, after: bytes | None = None) -> Iterator[tuple[bytes, Stat, int]]:
        """Yield (name, attributes, cookie of this entry) of the entries after ``cookie`` (0: from the start).

        ``after``: the name that the cookie stands for, where the caller knows better.

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
        if after is None:
            after = b"" if cookie <= 2 else self._position(state, cookie)
        for names in (state.names, state.others):
            if len(names) > 8 * BATCH:
                for old in list(names)[: 4 * BATCH]:
                    del names[old]
        while True:
            batch = self.namespace.after(inode, after, BATCH)
            for name, entry in batch:
                for names in (state.names, state.others if state.others is self._positions.get(inode) else {}):
                    names.pop(entry.inode, None)
                    names[entry.inode] = name
                stat = self._stat(entry)
                if self._descriptions.lacks(inode, entry):
                    stat.ttl_s = 0.0  # the kernel looks it up before anybody sees this
                yield name, stat, entry.inode
            if len(batch) < BATCH:
                return
            after = batch[-1][0]

    def _forget_positions(self, inode: int) -> None:
        """Handles that are open keep what they share, as it is now; later ones begin with nothing."""
        self._positions.pop(inode, None)

    def _directory(self, handle: int) -> _DirectoryHandle:
        state = self._directories.get(handle)
        if state is None:
            raise BadHandle(f"directory handle {handle} is not open")
        return state

    def _position(self, state: _DirectoryHandle, cookie: int) -> bytes:
        known = state.names.get(cookie) or state.others.get(cookie)
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

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Stat]:
        """Create a file and open it; returns (handle, attributes)."""
        self._check_name(name)
        self._check_writable(parent, name)
        handle, entry = await self._tree.create(parent, name, mode, flags, caller)
        return handle, self._stat(entry)

    async def open(self, inode: int, flags: int, caller: Caller) -> int:
        """Open a file; returns the handle."""
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return await self.files.open(inode)
        self._check_inode_writable(inode)
        return await self._writer.open(inode, truncate=bool(flags & os.O_TRUNC), caller=caller)

    async def read(self, ref: Ref, offset: int, length: int) -> Buffer:
        """Read from an open file."""
        if ref.inode is not None:
            return await self.files.read_registered(ref.inode, offset, length)
        assert ref.number is not None
        return await self.files.read(ref.number, offset, length)

    def _written(self, ref: Ref) -> tuple[Dirty | None, bool]:
        """Return what an open file is as a dirty one, and whether it is open for writing."""
        if ref.inode is not None:
            return self._dirty.get(ref.inode), True
        assert ref.number is not None
        inode, writing = self.files.staged_of(ref.number)
        return self._dirty.get(inode), writing

    async def write(self, ref: Ref, offset: int, data: Buffer) -> int:
        """Write to an open file; returns the bytes written: all."""
        dirty, writing = self._written(ref)
        if dirty is None or not writing:
            raise BadHandle("the file is not open for writing")
        await self._writer.write(dirty, offset, data)
        return len(data)

    async def flush(self, ref: Ref) -> None:
        """A descriptor of a file that is open for writing is closed."""
        dirty, writing = self._written(ref)
        if dirty is not None and writing:
            await self._promises.sync(dirty)

    async def fsync(self, ref: Ref, datasync: bool) -> None:
        """Bring the content where the write mode wants it."""
        dirty, _ = self._written(ref)
        if dirty is not None:
            await self._promises.fsync(dirty)

    async def fsyncdir(self, inode: int) -> None:
        """Make what was changed in a directory durable."""
        await self._tree.commit()

    async def release(self, ref: Ref) -> None:
        """The last descriptor of an open is closed."""
        dirty, writing = self._written(ref)
        if ref.number is not None:
            self.files.release(ref.number)
        elif ref.inode is not None:
            self.files.released(ref.inode)
        if dirty is not None and writing:
            self._promises.closed(dirty)

    async def fallocate(self, ref: Ref, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        dirty, writing = self._written(ref)
        if dirty is None or not writing:
            raise BadHandle("the file is not open for writing")
        await self._writer.fallocate(dirty, mode, offset, length)

    # -- changes of names and attributes

    async def setattr(self, inode: int, changes: AttributeChanges, ref: Ref | None, caller: Caller) -> Stat:
        """Change attributes; returns the new ones."""
        dirty = None
        if ref is not None:
            opened, writing = self._written(ref)
            dirty = opened if writing else None
        self._check_inode_writable(inode)
        await self._tree.set_attributes(inode, changes, dirty, caller)
        return await self.getattr(inode)

    def _check_writable(self, parent: int, name: bytes) -> None:
        """Raise `ReadOnly` where a rule of the configuration forbids changes."""
        if self._policies.rules and self._policies.of(f"{self.namespace.prefix(parent)}{os.fsdecode(name)}").read_only:
            raise ReadOnly(f"{name!r} is read-only by a rule of the configuration")

    def _check_inode_writable(self, inode: int) -> None:
        if self._policies.rules and inode != ROOT_INODE:
            try:
                self._check_writable(*self.namespace.place(inode))
            except Stale:
                return  # it has no name any more

    def _check_name(self, name: bytes) -> None:
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong(f"a name of {len(name)} bytes; {NAME_MAX_BYTES} are the most")

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Stat:
        """Make a directory."""
        self._check_name(name)
        self._check_writable(parent, name)
        return self._stat(await self._tree.mkdir(parent, name, mode, caller))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Stat:
        """Make a file, or a FIFO, socket or device."""
        self._check_name(name)
        self._check_writable(parent, name)
        return self._stat(await self._tree.mknod(parent, name, mode, rdev, caller))

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Stat:
        """Make a symlink."""
        self._check_name(name)
        self._check_writable(parent, name)
        return self._stat(await self._tree.symlink(parent, name, target, caller))

    async def link(self, inode: int, parent: int, name: bytes, caller: Caller) -> Stat:
        """Make a copy under a further name, where the mount is told to; it is another file from then on."""
        self._check_name(name)
        self._check_writable(parent, name)
        target = b""
        if self.links.hardlinks == "copy" and (await self.namespace.current(inode)).kind is Kind.SYMLINK:
            target = await self.readlink(inode)
        return self._stat(await self.links.link(inode, parent, name, target, caller))

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove what is no directory."""
        self._check_writable(parent, name)
        await self._tree.unlink(parent, name)
        await self._replicas.tell_holders()

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._check_writable(parent, name)
        await self._tree.rmdir(parent, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """Rename a file or directory; see rename(2) for the flags."""
        self._check_name(new_name)
        self._check_writable(parent, name)
        self._check_writable(new_parent, new_name)
        await self._moves.rename((parent, name), (new_parent, new_name), flags)
        await self._replicas.tell_holders()

    async def refresh(self, path: str) -> None:
        """Ask the store again about a path and what is directly below it. Raises `NoSuchName`, `StoreError`."""
        await self.namespace.refresh(path)
