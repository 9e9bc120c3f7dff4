"""Several under-stores in one tree: which volume a request of the kernel is for, and where each is attached.

A *volume* is one under-store's `FileSystem`. Number 0 is the mount's own; others hang at *attach points*: names in
directories of other volumes, which hide what the outer under-store has there. The kernel's numbers of inodes and handles
carry the volume's number above `VOLUME_SHIFT`; the file system itself is asked with the part below (`LOCAL_MASK`):

    volume = volumes.of(inode)
    with volume as fs:
        stat = await fs.getattr(inode & LOCAL_MASK)
    number = volume.base | stat.inode  # for the kernel

Where a volume cannot be served now, its attach point answers EIO.

The directories on the way to attach points are known by their path, and their inode numbers as they are met: so an
attach point stays where it is if those directories are replaced or removed in the under-store.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass, field

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.belief import STALE_TTL_S
from luxfuse.vfs.errors import AttachPoint, NoSuchName, NotADirectory, OtherVolume, ReadOnlyVolume, Stale, Unserved
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.shares import LOCAL_MASK, VOLUME_SHIFT

UNSERVED_MODE = modes.S_IFDIR
"""Of an attach point in listings while its volume cannot be served: a directory that no user may enter."""


class Volume:
    """One under-store in the tree; as a context manager, its file system for one request, which is counted meanwhile.

    ``base``: its number as it stands in the kernel's numbers of its inodes and handles, above `LOCAL_MASK`. A volume that
    cannot be served now raises `Unserved`. ``keeps_pages``: whether what the kernel has cached of a file is of this volume:
    a file that is open since a volume of the same number was here has pages of that one.
    """

    __slots__ = ("base", "fs", "keeps_pages", "negative_ttl_s", "node", "number", "read_only", "under_way")

    def __init__(self, number: int) -> None:
        self.number = number
        self.base = number << VOLUME_SHIFT
        self.node = _Node(None, b"", self.base | ROOT_INODE)
        self.fs: FileSystem | None = None
        self.read_only = False
        self.negative_ttl_s = 0.0
        self.under_way = 0
        self.keeps_pages = True

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
    """The tree of one mount. Inodes and handles are the kernel's numbers."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.main = Volume(0)
        self.main.node.volume = self.main
        self._volumes: dict[int, Volume] = {0: self.main}
        self._nodes: dict[int, _Node] = {ROOT_INODE: self.main.node}
        """Directories with children that are nodes, by the kernel's inode number."""
        self._point_names: dict[int, bytes] = {}
        """Of volumes, those that are gone too: listings that go on need them."""

    # -- attaching

    def split(self, path: str) -> tuple[Volume, str]:
        """Return the volume that a path (relative to the mount) is in, and the path inside that."""
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
        volume.keeps_pages = volume.number not in self._point_names
        self._point_names[volume.number] = name
        self._changed(node, name)

    def detach(self, volume: Volume) -> None:
        """Show the outer under-store at the attach point again; requests for the volume get ESTALE from now on."""
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
        self._kernel.revoke_all()
        volume = self._volumes.get(parent.inode >> VOLUME_SHIFT)
        if volume is not None and volume.fs is not None:
            volume.fs.directories.relist(parent.inode & LOCAL_MASK)
        self._kernel.invalidate_entry(parent.inode, name)

    async def settle(self) -> bool:
        """Wait until the kernel has forgotten all names that it was to forget; False: it takes too long."""
        return await self._kernel.forgotten()

    def is_shown(self, volume: Volume) -> bool:
        """Whether the directories on the way to an attach point were there when they were last looked for."""
        node: _Node | None = volume.node.parent
        while node is not None and node.volume is None:
            if node.missing:
                return False
            node = node.parent
        return True

    @property
    def under_way(self) -> bool:
        """Whether a request is under way in any of them."""
        return any(volume.under_way for volume in self._volumes.values())

    def withdraw(self, volume: Volume) -> None:
        """Answer requests for a volume with EIO from now on."""
        volume.fs = None
        self._kernel.revoke_all()

    # -- which volume

    def find(self, number: int) -> Volume | None:
        """Return the volume of an inode or handle; None if it was detached."""
        return self._volumes.get(number >> VOLUME_SHIFT)

    def of(self, number: int) -> Volume:
        """Return the volume of an inode or handle. Raises `Stale` if it was detached."""
        volume = self._volumes.get(number >> VOLUME_SHIFT)
        if volume is None:
            raise Stale("the under-store that this was in is not attached any more")
        return volume

    def changeable(self, inode: int) -> Volume:
        """Return the volume of an inode that is to be changed. Raises `Stale`, `ReadOnlyVolume`."""
        volume = self.of(inode)
        if volume.read_only:
            raise ReadOnlyVolume("the under-store is attached for reading only")
        return volume

    def of_name(self, parent: int, name: bytes) -> Volume:
        """Return the volume in which a name is to be changed. Raises `Stale`, `ReadOnlyVolume`, `AttachPoint`."""
        if self._child(parent, name) is not None:
            raise AttachPoint(f"{os.fsdecode(name)}: an under-store is attached there or below; detach it first")
        return self.changeable(parent)

    def require_same(self, first: int, second: int) -> None:
        """Raise `OtherVolume` unless two inodes are in the same volume, `Stale` if one was detached."""
        if self.of(first) is not self.of(second):
            raise OtherVolume("the names are in different under-stores")

    def outlived(self, inode: int) -> None:
        """An open in passthrough ends after its volume was detached: then only the kernel's side has to hear of it."""
        self._kernel.released(inode)

    def _child(self, parent: int, name: bytes) -> _Node | None:
        node = self._nodes.get(parent)
        return node.children.get(name) if node is not None else None

    # -- look-ups and listings, in which attach points are met

    async def lookup(self, parent: int, name: bytes) -> Stat:
        """Return a name's attributes, those of an attached root where there is one. Raises as `FileSystem.lookup` does."""
        child = self._child(parent, name)
        if child is None or child.volume is None:
            volume = self.of(parent)
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
                    if volume.fs is not None and self.is_plain(parent):
                        volume.fs.answers.looked_up(parent & LOCAL_MASK, name)
                    return stat
        return await self.getattr(child.inode)

    def known(self, parent: int, name: bytes) -> Stat | None:
        """As `lookup`, where nothing has to be asked for, nor an attach point looked at; else None."""
        if name in (b".", b"..") or self._child(parent, name) is not None:
            return None
        volume = self.of(parent)
        with volume as fs:
            try:
                stat = fs.known(parent & LOCAL_MASK, name)
            except NoSuchName:
                if self.is_plain(parent):
                    fs.answers.missed(parent & LOCAL_MASK)
                raise
            if stat is not None:
                stat.inode |= volume.base
                if self.is_plain(parent):
                    fs.answers.looked_up(parent & LOCAL_MASK, name)
        return stat

    def known_attributes(self, inode: int) -> Stat | None:
        """As `getattr`, where nothing has to be asked for; else None."""
        volume = self.of(inode)
        with volume as fs:
            stat = fs.known_attributes(inode & LOCAL_MASK)
        if stat is not None:
            stat.inode |= volume.base
            self.offer(inode)
        return stat

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

    def is_plain(self, directory: int) -> bool:
        """Whether a directory is not on the way to attach points: only then its names may be looked up without us."""
        node = self._nodes.get(directory)
        return node is None or not node.children

    async def getattr(self, inode: int) -> Stat:
        """Return an inode's attributes. Raises as `FileSystem.getattr` does."""
        volume, local = self.of(inode), inode & LOCAL_MASK
        with volume as fs:
            stat = await fs.getattr(local)
        stat.inode |= volume.base
        self.offer(inode)
        return stat

    def offer(self, inode: int) -> None:
        """Have the lanes answer for an inode, if they may: of a directory that changed the kernel asks the attributes."""
        volume, local = self.find(inode), inode & LOCAL_MASK
        if volume is None or volume.fs is None:
            return
        place = volume.fs.namespace.places.place_of(local)
        if place is not None and self.is_plain(volume.base | place[0]):
            volume.fs.answers.asked(local, *place)

    async def opendir(self, inode: int) -> tuple[int, bool, bool]:
        """Open a directory; returns the handle, and whether the kernel may cache its entries, and go on with those it has.

        Attach points have their places among the names: so one with such is listed whole before.
        """
        volume = self.of(inode)
        with volume as fs:
            handle, holds = await fs.directories.open(inode & LOCAL_MASK, not self.is_plain(inode))
            return volume.base | handle, not fs.directories.streams(handle), holds

    async def more(self, handle: int) -> bool:
        """Wait for more entries of a directory that `readdir` has found the end of; returns False if that is all."""
        with self.of(handle) as fs:
            return await fs.directories.more(handle & LOCAL_MASK)

    def readdir(self, handle: int, cookie: int) -> Iterator[tuple[bytes, Stat, int]]:
        """Yield the entries after ``cookie`` as `OpenDirectories.read` does, with the attach points among them."""
        volume = self.of(handle)
        with volume as fs:
            local = handle & LOCAL_MASK
            inode = volume.base | fs.directories.inode_of(local)
            node = self._nodes.get(inode)
            if volume is self.main and (node is None or not node.children) and cookie <= LOCAL_MASK:
                return fs.directories.read(local, cookie)
            if fs.directories.streams(local):  # in no order: points that came since are not shown
                node = None
            if cookie > LOCAL_MASK:  # the entry before was an attach point
                after = self._point_names.get(cookie >> VOLUME_SHIFT, b"")
            else:
                after = fs.directories.name_at(local, cookie) if cookie > 2 else b""
            entries = fs.directories.read(local, cookie, after)
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

    def negative_ttl_s(self, parent: int, name: bytes) -> float:
        """Return for how long the kernel may believe that a name is missing, as it was just told."""
        volume = self.of(parent)
        if volume.fs is None:
            return volume.negative_ttl_s
        namespace = volume.fs.namespace
        if namespace.missing.is_doubtful(parent & LOCAL_MASK, name):
            return 0.0
        return volume.negative_ttl_s if namespace.can_ask else min(volume.negative_ttl_s, STALE_TTL_S)
