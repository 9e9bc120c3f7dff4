"""Several under-stores in one tree: sends what the kernel asks to the volume that an inode or handle belongs to.

A *volume* is one under-store's `FileSystem`. Number 0 is the mount's own; others hang at *attach points*: names in
directories of other volumes, which hide what the outer under-store has there. The kernel's numbers of inodes and handles
carry the volume's number above `VOLUME_SHIFT`. Where a volume cannot be served now, its attach point answers EIO.

The directories on the way to attach points are known by their path, and their inode numbers as they are met: so an
attach point stays where it is, whatever becomes of those directories in the under-store.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Buffer
from luxfuse.vfs.attributes import AttributeChanges, Caller, Stat
from luxfuse.vfs.errors import AttachPoint, NoSuchName, NotADirectory, OtherVolume, ReadOnlyVolume, Stale, Unserved
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Ref
from luxfuse.vfs.shares import LOCAL_MASK, VOLUME_SHIFT, KernelShares

WRITE_FLAGS = os.O_ACCMODE | os.O_TRUNC
"""Any of these, and an open changes something or may."""
UNSERVED_MODE = modes.S_IFDIR
"""Of an attach point in listings while its volume cannot be served: a directory that nobody may enter."""


class Volume:
    """One under-store in the tree. As a context manager it counts the requests that are under way in it."""

    __slots__ = ("base", "fs", "negative_ttl_s", "node", "number", "read_only", "under_way")

    def __init__(self, number: int) -> None:
        self.number = number
        self.base = number << VOLUME_SHIFT
        self.node = _Node(None, b"", self.base | ROOT_INODE)
        self.fs: FileSystem | None = None
        self.read_only = False
        self.negative_ttl_s = 0.0
        self.under_way = 0

    def serve(self, fs: FileSystem, *, negative_ttl_s: float, read_only: bool) -> None:
        """Answer from ``fs`` from now on."""
        self.negative_ttl_s = negative_ttl_s
        self.read_only = read_only
        self.fs = fs

    def __enter__(self) -> FileSystem:
        if self.fs is None:
            raise Unserved("the under-store that is attached here cannot be reached")
        self.under_way += 1
        return self.fs

    def __exit__(self, *_: object) -> None:
        self.under_way -= 1

    @property
    def in_use(self) -> bool:
        """Whether anything in it is open or asked for; backings of files that are not open are given up for that."""
        return self.fs is not None and (self.under_way > 0 or not self.fs.close_idle())


@dataclass(slots=True, eq=False)
class _Node:
    """A directory on the way to attach points, or an attach point. ``inode``: as the kernel last heard.

    ``missing``: the under-store did not have it when the kernel last asked.
    """

    parent: _Node | None
    name: bytes
    inode: int
    children: dict[bytes, _Node] = field(default_factory=dict)
    volume: Volume | None = None
    missing: bool = False


class Volumes:
    """The tree of one mount; offers what `luxfuse.fuse.operations` asks of a file system."""

    def __init__(self, shares: KernelShares) -> None:
        self._shares = shares
        self._kernel = shares.kernel
        self.main = Volume(0)
        self.main.node.volume = self.main
        self._volumes: dict[int, Volume] = {0: self.main}
        self._nodes: dict[int, _Node] = {ROOT_INODE: self.main.node}
        """Directories with children that are nodes, by the kernel's inode number."""
        self._point_names: dict[int, bytes] = {}
        """Of volumes, those that are gone too: listings that go on need them."""

    # -- attaching

    def split(self, path: str) -> tuple[Volume, str]:
        """Return which volume a path (relative to the mount) is in, and what it is called there."""
        parts = path.split("/") if path else []
        node, found, depth = self.main.node, self.main, 0
        for number, part in enumerate(parts, 1):
            child = node.children.get(os.fsencode(part))
            if child is None:
                break
            node = child
            if node.volume is not None:
                found, depth = node.volume, number
        return found, "/".join(parts[depth:])

    async def way_to(self, path: str) -> list[int]:
        """Return the inodes of the directories that a path goes through. Raises `NoSuchName`, `NotADirectory`."""
        met = [ROOT_INODE]
        for part in path.split("/")[:-1]:
            stat = await self.lookup(met[-1], os.fsencode(part))
            if not modes.S_ISDIR(stat.mode):
                raise NotADirectory(f"{part} is no directory")
            met.append(stat.inode)
        return met

    async def attach(self, volume: Volume, path: str) -> None:
        """Show a volume at ``path``, whose directory must exist. Raises `NoSuchName`, `NotADirectory`, `AttachPoint`."""
        *parents, name = [os.fsencode(part) for part in path.split("/")]
        met = await self.way_to(path)
        node = self.main.node
        for part, inode in zip(parents, met[1:], strict=True):  # nothing is made before all of them are known
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = _Node(node, part, 0)
            if child.volume is None:
                self._met(child, inode)
            node = child
        if name in node.children:
            raise AttachPoint(f"{path} is an attach point already, or on the way to one")
        child = volume.node
        child.parent, child.name, child.volume = node, name, volume
        node.children[name] = child
        self._nodes[child.inode] = child
        self._volumes[volume.number] = volume
        self._point_names[volume.number] = name
        self._changed(node, name)

    def detach(self, volume: Volume) -> None:
        """Show what the outer under-store has at the attach point; whatever asks for the volume gets ESTALE."""
        node = volume.node
        parent = node.parent
        assert parent is not None
        del parent.children[node.name]
        del self._volumes[volume.number], self._nodes[node.inode]
        self._changed(parent, node.name)
        self._prune(parent)

    def _prune(self, node: _Node) -> None:
        while not node.children and node.volume is None and node.parent is not None:
            del self._nodes[node.inode], node.parent.children[node.name]
            node = node.parent

    def _changed(self, parent: _Node, name: bytes) -> None:
        """The kernel is to forget a name, and the listing that it is in."""
        volume = self._volumes.get(parent.inode >> VOLUME_SHIFT)
        if volume is not None and volume.fs is not None:
            volume.fs.relist(parent.inode & LOCAL_MASK)
        self._kernel.invalidate_entry(parent.inode, name)

    async def settle(self) -> bool:
        """Wait until the kernel has forgotten what it was to forget; False: it takes too long."""
        return await self._kernel.settle()

    def is_shown(self, volume: Volume) -> bool:
        """Whether the directories on the way to an attach point were there when they were last looked for."""
        node: _Node | None = volume.node.parent
        while node is not None and node.volume is None:
            if node.missing:
                return False
            node = node.parent
        return True

    # -- dispatching

    def _volume(self, inode: int) -> Volume:
        """Return the volume of an inode or handle. Raises `Stale` if it was detached."""
        volume = self._volumes.get(inode >> VOLUME_SHIFT)
        if volume is None:
            raise Stale("the under-store that this was in is not attached any more")
        return volume

    def _changeable(self, inode: int) -> Volume:
        volume = self._volume(inode)
        if volume.read_only:
            raise ReadOnlyVolume("the under-store is attached for reading only")
        return volume

    def _of(self, ref: Ref) -> tuple[Volume, Ref]:
        """Return the volume of an open file, and what it is there."""
        number, inode = ref.number, ref.inode
        if inode is None:
            assert number is not None
            return self._volume(number), Ref(None, number & LOCAL_MASK)
        return self._volume(inode), Ref(inode & LOCAL_MASK, None)

    def _child(self, parent: int, name: bytes) -> _Node | None:
        node = self._nodes.get(parent)
        return node.children.get(name) if node is not None else None

    def _name(self, parent: int, name: bytes) -> Volume:
        """Return the volume in which a name can be changed. Raises `AttachPoint` for one that carries an attach point."""
        if self._child(parent, name) is not None:
            raise AttachPoint(f"{os.fsdecode(name)}: an under-store is attached there or below; detach it first")
        return self._changeable(parent)

    def negative_ttl_s(self, parent: int, name: bytes) -> float:
        """Return for how long the kernel may believe that a name is missing, as it was just told."""
        volume = self._volume(parent)
        doubtful = volume.fs is not None and volume.fs.namespace.is_doubtful(parent & LOCAL_MASK, name)
        return 0.0 if doubtful else volume.negative_ttl_s

    # -- names and attributes

    async def lookup(self, parent: int, name: bytes) -> Stat:
        """See `FileSystem.lookup`."""
        child = self._child(parent, name)
        if child is None or child.volume is None:
            volume = self._volume(parent)
            if name == b".." and (above := self._above(volume, parent & LOCAL_MASK)) is not None:
                return await self.getattr(above)
            try:
                with volume as fs:
                    stat = await fs.lookup(parent & LOCAL_MASK, name)
            except LuxError as exc:
                child = self._child(parent, name)
                if child is None or child.volume is None:
                    if child is not None and isinstance(exc, NoSuchName):
                        child.missing = True
                    raise
            else:
                stat.inode |= volume.base
                child = self._child(parent, name)
                if child is None or child.volume is None:
                    self._met(child, stat.inode)
                    return stat
        return await self.getattr(child.inode)

    def _above(self, volume: Volume, inode: int) -> int | None:
        """Return the directory that an attached root is in; None for anything else."""
        if inode != ROOT_INODE or volume.node.parent is None:
            return None
        return volume.node.parent.inode

    def _met(self, node: _Node | None, inode: int) -> None:
        """The kernel is told that a directory on the way to attach points has this number."""
        if node is None:
            return
        node.missing = False
        if node.inode != inode:
            self._nodes.pop(node.inode, None)
            node.inode = inode
            self._nodes[inode] = node

    async def getattr(self, inode: int) -> Stat:
        """See `FileSystem.getattr`."""
        volume = self._volume(inode)
        with volume as fs:
            stat = await fs.getattr(inode & LOCAL_MASK)
        stat.inode |= volume.base
        return stat

    async def readlink(self, inode: int) -> bytes:
        """See `FileSystem.readlink`."""
        with self._volume(inode) as fs:
            return await fs.readlink(inode & LOCAL_MASK)

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """See `FileSystem.getxattr`."""
        with self._volume(inode) as fs:
            return await fs.getxattr(inode & LOCAL_MASK, name)

    async def listxattr(self, inode: int) -> list[bytes]:
        """See `FileSystem.listxattr`."""
        with self._volume(inode) as fs:
            return await fs.listxattr(inode & LOCAL_MASK)

    async def setxattr(self, inode: int, name: bytes, value: bytes) -> None:
        """See `FileSystem.setxattr`."""
        with self._changeable(inode) as fs:
            await fs.setxattr(inode & LOCAL_MASK, name, value)

    async def removexattr(self, inode: int, name: bytes) -> None:
        """See `FileSystem.removexattr`."""
        with self._changeable(inode) as fs:
            await fs.removexattr(inode & LOCAL_MASK, name)

    async def setattr(self, inode: int, changes: AttributeChanges, ref: Ref | None, caller: Caller) -> Stat:
        """See `FileSystem.setattr`."""
        volume = self._changeable(inode)
        with volume as fs:
            stat = await fs.setattr(inode & LOCAL_MASK, changes, None if ref is None else self._of(ref)[1], caller)
        stat.inode |= volume.base
        return stat

    # -- directories

    async def opendir(self, inode: int) -> tuple[int, bool]:
        """See `FileSystem.opendir`."""
        volume = self._volume(inode)
        with volume as fs:
            handle, holds = await fs.opendir(inode & LOCAL_MASK)
        return volume.base | handle, holds

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[bytes, Stat, int]]:
        """See `FileSystem.readdir`; attach points come among the entries."""
        volume = self._volume(handle)
        with volume as fs:
            local = handle & LOCAL_MASK
            inode = volume.base | fs.directory_of(local)
            node = self._nodes.get(inode)
            if volume is self.main and (node is None or not node.children) and cookie <= LOCAL_MASK:
                return fs.readdir(local, cookie)
            if cookie > LOCAL_MASK:  # the entry before was an attach point
                after = self._point_names.get(cookie >> VOLUME_SHIFT, b"")
            else:
                after = fs.name_at(local, cookie) if cookie > 2 else b""
            entries = fs.readdir(local, cookie, after)
            return self._with_points(volume, inode, node, entries, after)

    def _with_points(
        self, volume: Volume, inode: int, node: _Node | None, entries: Iterator[tuple[bytes, Stat, int]], after: bytes
    ) -> Iterator[tuple[bytes, Stat, int]]:
        children = node.children if node is not None else {}
        points = sorted((name for name, child in children.items() if child.volume and name > after), reverse=True)
        for name, stat, cookie in entries:
            if name not in (b".", b".."):
                while points and points[-1] < name:
                    yield self._point(children[points.pop()])
                if points and points[-1] == name:
                    yield self._point(children[points.pop()])
                    continue
            stat.inode |= volume.base
            if name == b".." and (above := self._above(volume, inode & LOCAL_MASK)) is not None:
                stat.inode = above
            elif (child := children.get(name)) is not None:
                self._met(child, stat.inode)
            yield name, stat, cookie
        while points:
            yield self._point(children[points.pop()])

    def _point(self, node: _Node) -> tuple[bytes, Stat, int]:
        """Return the entry of an attach point. The kernel asks for its attributes when it needs them."""
        assert node.volume is not None
        if node.volume.fs is None:
            stat = Stat(node.inode, UNSERVED_MODE, 0, 0, 0, 0, 0.0, 0, 0, 0)
        else:
            stat = node.volume.fs.root_stat()
            stat.inode |= node.volume.base
        return node.name, stat, node.inode

    def releasedir(self, handle: int) -> None:
        """See `FileSystem.releasedir`."""
        volume = self._volumes.get(handle >> VOLUME_SHIFT)
        if volume is not None and volume.fs is not None:
            volume.fs.releasedir(handle & LOCAL_MASK)

    async def fsyncdir(self, inode: int) -> None:
        """See `FileSystem.fsyncdir`."""
        with self._volume(inode) as fs:
            await fs.fsyncdir(inode & LOCAL_MASK)

    # -- files

    async def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[int, Stat]:
        """See `FileSystem.create`."""
        volume = self._name(parent, name)
        with volume as fs:
            handle, stat = await fs.create(parent & LOCAL_MASK, name, mode, flags, caller)
        stat.inode |= volume.base
        return handle | volume.base, stat

    async def open(self, inode: int, flags: int, caller: Caller) -> int:
        """See `FileSystem.open`."""
        volume = self._changeable(inode) if flags & WRITE_FLAGS else self._volume(inode)
        with volume as fs:
            return volume.base | await fs.open(inode & LOCAL_MASK, flags, caller)

    async def read(self, ref: Ref, offset: int, length: int) -> Buffer:
        """See `FileSystem.read`."""
        volume, ref = self._of(ref)
        with volume as fs:
            return await fs.read(ref, offset, length)

    async def write(self, ref: Ref, offset: int, data: Buffer) -> int:
        """See `FileSystem.write`."""
        volume, ref = self._of(ref)
        with volume as fs:
            return await fs.write(ref, offset, data)

    async def flush(self, ref: Ref) -> None:
        """See `FileSystem.flush`."""
        volume, ref = self._of(ref)
        with volume as fs:
            await fs.flush(ref)

    async def fsync(self, ref: Ref, datasync: bool) -> None:
        """See `FileSystem.fsync`."""
        volume, ref = self._of(ref)
        with volume as fs:
            await fs.fsync(ref, datasync)

    async def release(self, ref: Ref) -> None:
        """See `FileSystem.release`. An open may outlive its volume: then only the kernel's side has to hear of its end."""
        try:
            volume, local = self._of(ref)
        except Stale:
            if ref.inode is not None:
                self._kernel.released(ref.inode)
            return
        with volume as fs:
            await fs.release(local)

    async def fallocate(self, ref: Ref, mode: int, offset: int, length: int) -> None:
        """See `FileSystem.fallocate`."""
        volume, ref = self._of(ref)
        with volume as fs:
            await fs.fallocate(ref, mode, offset, length)

    # -- changes of names

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Stat:
        """See `FileSystem.mkdir`."""
        volume = self._name(parent, name)
        with volume as fs:
            stat = await fs.mkdir(parent & LOCAL_MASK, name, mode, caller)
        stat.inode |= volume.base
        return stat

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Stat:
        """See `FileSystem.mknod`."""
        volume = self._name(parent, name)
        with volume as fs:
            stat = await fs.mknod(parent & LOCAL_MASK, name, mode, rdev, caller)
        stat.inode |= volume.base
        return stat

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Stat:
        """See `FileSystem.symlink`."""
        volume = self._name(parent, name)
        with volume as fs:
            stat = await fs.symlink(parent & LOCAL_MASK, name, target, caller)
        stat.inode |= volume.base
        return stat

    async def link(self, inode: int, parent: int, name: bytes, caller: Caller) -> Stat:
        """See `FileSystem.link`; from one volume to another there is none."""
        if self._volume(inode) is not self._volume(parent):
            raise OtherVolume("a link from one under-store to another")
        volume = self._name(parent, name)
        with volume as fs:
            stat = await fs.link(inode & LOCAL_MASK, parent & LOCAL_MASK, name, caller)
        stat.inode |= volume.base
        return stat

    async def unlink(self, parent: int, name: bytes) -> None:
        """See `FileSystem.unlink`."""
        with self._name(parent, name) as fs:
            await fs.unlink(parent & LOCAL_MASK, name)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """See `FileSystem.rmdir`."""
        with self._name(parent, name) as fs:
            await fs.rmdir(parent & LOCAL_MASK, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """See `FileSystem.rename`; from one volume to another there is none."""
        if self._volume(parent) is not self._volume(new_parent):
            raise OtherVolume("a rename from one under-store to another")
        self._name(new_parent, new_name)
        volume = self._name(parent, name)
        with volume as fs:
            await fs.rename(parent & LOCAL_MASK, name, new_parent & LOCAL_MASK, new_name, flags)
