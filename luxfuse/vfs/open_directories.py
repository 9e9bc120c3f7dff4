"""Directories that are open: listings, and the positions in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.errors import BadHandle, NotADirectory, Stale
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.shown import Shown

BATCH = 216
"""Entries read from the index at once; a READDIRPLUS of Linux 6.18 takes about 200."""
LISTINGS_REMEMBERED = 10_000
POSITIONS_REMEMBERED = 256


@dataclass(slots=True)
class _Handle:
    inode: int
    names: dict[int, bytes]
    """Where to go on after each cookie handed out lately."""
    others: dict[int, bytes]
    """The same of all handles of the directory: the kernel goes on with one where it has cached the entries of another."""


class OpenDirectories:
    """The open directories of one mount."""

    def __init__(self, *, namespace: Namespace, descriptions: Descriptions, removing: Removing, shown: Shown) -> None:
        self._namespace = namespace
        self._descriptions = descriptions
        self._removing = removing
        self._shown = shown
        self._handles: dict[int, _Handle] = {}
        self._next_handle = 1
        self._positions: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        """Of directories opened lately: the positions that their handles share."""
        self._kernel_has: OrderedDict[int, int] = OrderedDict()
        """Serial numbers of the listings that the kernel may have cached, by directory."""

    async def open(self, inode: int) -> tuple[int, bool]:
        """Open a directory, listing it if need be; returns (handle, whether the kernel's cached one still holds)."""
        if self._removing.removed_directory(inode) is not None:
            return self._new_handle(inode), False
        if inode != ROOT_INODE and (await self._namespace.current(inode)).kind is not Kind.DIRECTORY:
            raise NotADirectory(f"inode {inode} is no directory")
        serial = await self._namespace.relisting.listed(inode)
        await self._descriptions.judge(inode)
        holds = self._kernel_has.get(inode) == serial
        self._kernel_has[inode] = serial
        self._kernel_has.move_to_end(inode)
        if len(self._kernel_has) > LISTINGS_REMEMBERED:
            self._kernel_has.popitem(last=False)
        return self._new_handle(inode), holds

    def inherit(self, handle: int, inode: int, cookie: int, name: bytes) -> None:
        """Take over a directory that a predecessor has opened; ``cookie``: the last that it gave, for ``name``."""
        self._add(handle, inode)
        if cookie > 2:
            self._handles[handle].names[cookie] = name

    def _new_handle(self, inode: int) -> int:
        while (handle := self._next_handle) in self._handles:
            self._next_handle = handle % 0xFFFF_FFFF + 1
        self._next_handle = handle % 0xFFFF_FFFF + 1
        self._add(handle, inode)
        return handle

    def _add(self, handle: int, inode: int) -> None:
        self._handles[handle] = _Handle(inode, {}, self._positions.setdefault(inode, {}))
        self._positions.move_to_end(inode)
        if len(self._positions) > POSITIONS_REMEMBERED:
            self._positions.popitem(last=False)

    def inode_of(self, handle: int) -> int:
        """Return the inode of an open directory. Raises `BadHandle`."""
        return self._directory(handle).inode

    def name_at(self, handle: int, cookie: int) -> bytes:
        """Return the name that a cookie of an open directory stands for. Raises `BadHandle`, `Stale`."""
        return self._position(self._directory(handle), cookie)

    def read(self, handle: int, cookie: int, after: bytes | None = None) -> Iterator[tuple[bytes, Stat, int]]:
        """Yield (name, attributes, cookie of this entry) of the entries after ``cookie`` (0: from the start).

        ``after``: the name that the cookie stands for, where the caller knows better.

        Entries come in the byte order of their names, and the position is a name: while names come and go, every entry
        that stays comes exactly once.
        """
        state = self._directory(handle)
        inode = state.inode
        if cookie == 0:
            yield b".", self._shown.dot(inode), 1
        if cookie <= 1:
            above = ROOT_INODE if inode == ROOT_INODE else self._parent(inode)
            yield b"..", self._shown.dot(above), 2
        if after is None:
            after = b"" if cookie <= 2 else self._position(state, cookie)
        for names in (state.names, state.others):
            if len(names) > 8 * BATCH:
                for old in list(names)[: 4 * BATCH]:
                    del names[old]
        while True:
            batch = self._namespace.after(inode, after, BATCH)
            positions = {entry.inode: name for name, entry in batch}
            state.names.update(positions)
            if state.others is self._positions.get(inode):
                state.others.update(positions)
            yield from self._shown.listed(inode, batch)
            if len(batch) < BATCH:
                return
            after = batch[-1][0]

    def _directory(self, handle: int) -> _Handle:
        state = self._handles.get(handle)
        if state is None:
            raise BadHandle(f"directory handle {handle} is not open")
        return state

    def _position(self, state: _Handle, cookie: int) -> bytes:
        known = state.names.get(cookie) or state.others.get(cookie)
        if known is None:
            known = self._namespace.position(cookie)
        return known

    def _parent(self, inode: int) -> int:
        try:
            return self._namespace.places.locate(inode)[0]
        except Stale:
            return ROOT_INODE

    def close(self, handle: int) -> None:
        """Close a directory."""
        self._handles.pop(handle, None)

    @property
    def any_open(self) -> bool:
        """Whether any directory is open."""
        return bool(self._handles)

    # -- changes

    def relist(self, inode: int) -> None:
        """The listing that the kernel has cached of a directory does not hold any more."""
        self._kernel_has.pop(inode, None)

    def forget_positions(self, inode: int) -> None:
        """Inode numbers stand for other names in a directory now.

        Handles that are open keep what they share, as it is now; later ones begin with nothing.
        """
        self._positions.pop(inode, None)
