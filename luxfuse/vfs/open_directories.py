"""Directories that are open: listings, and the positions in them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from luxfuse.core.listed_spans import Given, Position
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.errors import BadHandle, NotADirectory, Stale
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.removing import Removing
from luxfuse.vfs.shares import VOLUME_SHIFT
from luxfuse.vfs.shown import Shown
from luxfuse.vfs.streams import Stream

BATCH = 216
"""Entries read from the index at once; a READDIRPLUS of Linux 6.18 takes about 200."""
LISTINGS_REMEMBERED = 10_000
POSITIONS_REMEMBERED = 256
UNORDERED = -1
"""A cookie that tells a successor of positions which it cannot know: those in a listing that came in no order."""

FIRST_SPARE_COOKIE = 1 << (VOLUME_SHIFT - 1)
"""No inode number: those count from `index.numbers.FIRST_INODE`. Nor an attach point's cookie, which has a volume in it."""


Batch = tuple[list[tuple[bytes, Entry]], dict[int, int]]
"""Entries, and the cookies of those whose cookie is not their inode."""


@dataclass(slots=True)
class _Handle:
    inode: int
    names: dict[int, bytes]
    """Where to go on after each cookie handed out lately."""
    others: dict[int, bytes]
    """The same of all handles of the directory: the kernel goes on with one where it has cached the entries of another."""
    spans: dict[int, int] = field(default_factory=dict)
    """The span of the stream in which each of these names was read."""
    stream: Stream | None = None
    """The listing that was under way when it was opened: its entries come in that one's order, to the end."""
    read: int = 0
    """The spans that the stream had when it was read last."""
    lost: bool = False
    """Whether that was the listing of another daemon, which is gone, and positions in it mean nothing."""
    given: Given | None = None
    """What another daemon has given of its listing: the rest comes in the order of names."""
    inherited: dict[int, Position] = field(default_factory=dict)
    """The last positions that another daemon has told of, by cookie."""


class OpenDirectories:
    """The open directories of one mount."""

    def __init__(self, *, namespace: Namespace, descriptions: Descriptions, removing: Removing, shown: Shown) -> None:
        self._namespace = namespace
        self._descriptions = descriptions
        self._removing = removing
        self.shown = shown
        self._handles: dict[int, _Handle] = {}
        self._next_handle = 1
        self._spare_cookies = itertools.count(FIRST_SPARE_COOKIE)
        self._positions: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        """Of directories opened lately: the positions that their handles share."""
        self._kernel_has: OrderedDict[int, int] = OrderedDict()
        """Serial numbers of the listings that the kernel may have cached, by directory."""

    async def open(self, inode: int, whole: bool = False) -> tuple[int, bool]:
        """Open a directory, listing it if need be; returns (handle, whether the kernel's cached one still holds).

        ``whole``: wait until it is listed whole; else a listing may be under way (`streams`).
        """
        if self._removing.removed_directory(inode) is not None:
            return self._new_handle(inode), False
        if inode != ROOT_INODE and (await self._namespace.current(inode)).kind is not Kind.DIRECTORY:
            raise NotADirectory(f"inode {inode} is no directory")
        relisting = self._namespace.relisting
        serial = await (relisting.listed(inode) if whole else relisting.begun(inode))
        if isinstance(serial, Stream):
            await self._descriptions.judge(inode, begun=True)
            self._kernel_has.pop(inode, None)
            return self._new_handle(inode, serial), False
        await self._descriptions.judge(inode)
        holds = self._kernel_has.get(inode) == serial
        self._kernel_has[inode] = serial
        self._kernel_has.move_to_end(inode)
        if len(self._kernel_has) > LISTINGS_REMEMBERED:
            self._kernel_has.popitem(last=False)
        return self._new_handle(inode), holds

    def streams(self, handle: int) -> bool:
        """Whether a directory was opened while its listing was under way: then its entries come in no certain order.

        They must not be mixed with those of other handles, as in the kernel's cache. Raises `BadHandle`.
        """
        state = self._directory(handle)
        return state.stream is not None or state.given is not None

    def inherit(self, handle: int, inode: int, positions: Mapping[int, Position]) -> None:
        """Take over a directory that a predecessor has opened, with the `positions` that it told of last."""
        self._add(handle, inode)
        state = self._handles[handle]
        state.lost = UNORDERED in positions
        state.inherited = dict(positions)
        state.names.update((cookie, position.after) for cookie, position in positions.items() if cookie > 2)

    def positions(self, handle: int, start: int, cookie: int, name: bytes) -> dict[int, Position]:
        """Return what a successor must know of a directory that is read from cookie ``start`` on, up to ``name``.

        ``cookie`` is the name's. If the answer does not arrive, the successor is asked to go on from ``start`` again.
        """
        state = self._directory(handle)
        known: dict[int, Position] = {}
        for at in (start, cookie):
            if at <= 2:
                continue
            told = state.inherited.get(at) if at == start and state.given is not None else None
            told = told or self._told(state, name if at == cookie else self._position(state, at), at)
            if told is None:
                return {UNORDERED: Position(b"")}
            known[at] = told
        return known

    @staticmethod
    def _told(state: _Handle, name: bytes, cookie: int) -> Position | None:
        if state.stream is None:
            return Position(name, state.given)
        given = state.stream.given(name, state.spans.get(cookie))
        return Position(b"", given) if given is not None else None

    async def prepare(self, handle: int, cookie: int) -> None:
        """Before `read` of a directory that another daemon has opened: choose what is left, and have it listed whole.

        Raises the error of the listing, where that fails.
        """
        state = self._directory(handle)
        if cookie == 0:
            state.given = None
            state.inherited.clear()
        elif (position := state.inherited.get(cookie)) is not None:
            state.given = position.given
        if state.given is not None and self._removing.removed_directory(state.inode) is None:
            await self._namespace.relisting.listed(state.inode)

    def _new_handle(self, inode: int, stream: Stream | None = None) -> int:
        while (handle := self._next_handle) in self._handles:
            self._next_handle = handle % 0xFFFF_FFFF + 1
        self._next_handle = handle % 0xFFFF_FFFF + 1
        self._add(handle, inode, stream)
        return handle

    def _add(self, handle: int, inode: int, stream: Stream | None = None) -> None:
        self._handles[handle] = _Handle(inode, {}, self._positions.setdefault(inode, {}), stream=stream)
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

        Entries come in the byte order of their names, or as a listing that is under way has brought them so far (`more`).
        The position is a name: while names come and go, every entry that stays comes exactly once.
        """
        yield from self.dots(handle, cookie)
        inode = self.inode_of(handle)
        for batch, cookies in self.batches(handle, cookie, after):
            listed = self.shown.listed(inode, batch)
            yield from listed if not cookies else ((name, stat, cookies.get(at, at)) for name, stat, at in listed)

    def is_plain(self, handle: int) -> bool:
        """Whether nothing has to be prepared (`prepare`) before a directory is read. Raises `BadHandle`."""
        state = self._directory(handle)
        return not state.lost and state.given is None and not state.inherited

    def dots(self, handle: int, cookie: int) -> Iterator[tuple[bytes, Stat, int]]:
        """Yield the part of `read` that is no entry. Raises `BadHandle`, `Stale`."""
        state = self._directory(handle)
        if state.lost and cookie:
            raise Stale("the directory was being listed when the daemon ended; it has to be read from the start")
        state.lost = False
        if cookie == 0:
            yield b".", self.shown.dot(state.inode), 1
        if cookie <= 1:
            above = ROOT_INODE if state.inode == ROOT_INODE else self._parent(state.inode)
            yield b"..", self.shown.dot(above), 2

    def batches(self, handle: int, cookie: int, after: bytes | None = None) -> Iterator[Batch]:
        """Yield the entries that `read` has, and the cookies that are not their inodes."""
        state = self._directory(handle)
        stream = state.stream
        if after is None:
            after = b"" if cookie <= 2 else self._position(state, cookie)
        for names in (state.names, state.others):
            if len(names) > 8 * BATCH:
                for old in list(islice(names, 4 * BATCH)):
                    del names[old]
                    if state.spans and names is state.names:
                        state.spans.pop(old, None)
        for batch, number in self._left(state, after) if stream is None else self._streamed(state, stream, after, cookie):
            positions = {entry.inode: name for name, entry in batch}
            cookies = self._renamed(state, positions)
            if cookies:
                positions = {cookies.get(inode, inode): name for inode, name in positions.items()}
            state.names.update(positions)
            if number is not None:
                state.spans.update(dict.fromkeys(positions, number))
            if state.others is self._positions.get(state.inode):
                state.others.update(positions)
            yield batch, cookies

    def _renamed(self, state: _Handle, positions: dict[int, bytes]) -> dict[int, int]:
        """Return other cookies for inodes that the handle has shown by another name: theirs stay where they were.

        Those that it has shown by the same name become the ones that were handed out last.
        """
        names = state.names
        cookies: dict[int, int] = {}
        for inode in names.keys() & positions.keys():
            if names[inode] != positions[inode]:
                cookies[inode] = next(self._spare_cookies)
            else:
                del names[inode]
        return cookies

    def _left(self, state: _Handle, after: bytes) -> Iterator[tuple[list[tuple[bytes, Entry]], int | None]]:
        given = state.given
        for batch in self._batches(state.inode, after):
            yield batch if given is None else [(name, e) for name, e in batch if not given.has(name, e.kind)], None

    def _batches(self, inode: int, after: bytes) -> Iterator[list[tuple[bytes, Entry]]]:
        while True:
            batch = self._namespace.after(inode, after, BATCH)
            yield batch
            if len(batch) < BATCH:
                return
            after = batch[-1][0]

    @staticmethod
    def _streamed(
        state: _Handle, stream: Stream, after: bytes, cookie: int
    ) -> Iterator[tuple[list[tuple[bytes, Entry]], int | None]]:
        number = 0
        if after:
            known = state.spans.get(cookie)
            number = known if known is not None else stream.place(after)
        state.read = stream.spans
        while number < stream.spans:
            batch, following, after = stream.read(number, after, BATCH)
            yield batch, number
            number = following
            state.read = stream.spans

    async def more(self, handle: int) -> bool:
        """Wait until there may be more to read than the last `read` had, which came to its end; returns False if not.

        Raises the error of the listing, where that has failed.
        """
        state = self._directory(handle)
        stream = state.stream
        if stream is None:
            return False
        if await stream.more(state.read):
            return True
        if stream.error is None:
            return False
        await self._namespace.relisting.complete(state.inode, stream)
        return stream.spans > state.read

    def _directory(self, handle: int) -> _Handle:
        state = self._handles.get(handle)
        if state is None:
            raise BadHandle(f"directory handle {handle} is not open")
        return state

    def _position(self, state: _Handle, cookie: int) -> bytes:
        known = state.names.get(cookie)
        if known is None:
            known = state.others.get(cookie)
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
