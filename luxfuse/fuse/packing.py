"""Answers to READDIRPLUS, packed by the extension (`lane/entries.c`): what most entries have in common is said once."""

from __future__ import annotations

from luxfuse.core.listed_spans import Position
from luxfuse.fuse.attributes import form_of, nanoseconds_of
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.index.entries import Entry
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.shares import LOCAL_MASK
from luxfuse.vfs.shown import Shown
from luxfuse.vfs.volumes import Volumes

MOST_BYTES = 1 << 20
"""Of one answer."""


class Packing:
    """An answer as far as it has come. ``last``: cookie and name of its last entry; ``full``: more do not fit in."""

    def __init__(self, size: int, base: int) -> None:
        """``base``: see `Volume`."""
        self.answer = bytearray(min(size, MOST_BYTES))
        self.used = 0
        self.last: tuple[int, bytes] | None = None
        self.full = False
        self._base = base

    def add(self, name: bytes, stat: Stat, cookie: int) -> bool:
        """Put in an entry; returns whether there was room for it."""
        said = (*form_of(stat, self._base), *nanoseconds_of(stat))
        used = passthrough.pack_one(self.answer, self.used, name, cookie, *said)
        if used == self.used:
            self.full = True
            return False
        self.used, self.last = used, (cookie, name)
        return True

    def add_batch(self, shown: Shown, directory: int, batch: list[tuple[bytes, Entry]], cookies: dict[int, int]) -> bool:
        """Put in entries as `Shown.listed` has them; returns whether there was room for all."""
        common, at = shown.common(directory, batch), 0
        while at < len(batch):
            if common is not None:
                begun_at = at
                self.used, at, self.full = passthrough.pack(
                    self.answer, self.used, self._base, batch, at, cookies or None, common
                )
                if at > begun_at:
                    name, entry = batch[at - 1]
                    self.last = cookies.get(entry.inode, entry.inode), name
                if self.full:
                    return False
            for name, stat, inode in shown.listed(directory, batch[at : at + 1]):
                if not self.add(name, stat, cookies.get(inode, inode)):
                    return False
                at += 1
        return True


def packed(volumes: Volumes, handle: int, start: int, size: int) -> Packing | None:
    """Return the entries of a directory after cookie ``start`` that fit into so many bytes; none: that is all.

    None: something has to be waited for, or the directory has attach points, or was opened by another daemon. Raises as
    `OpenDirectories.read`.
    """
    volume, local = volumes.of(handle), handle & LOCAL_MASK
    with volume as fs:
        directories = fs.directories
        inode = directories.inode_of(local)
        if start > LOCAL_MASK or not volumes.is_plain(volume.base | inode) or not directories.is_plain(local):
            return None
        if volume.base and inode == ROOT_INODE and start <= 1:  # its ".." is in another volume
            return None
        packing = Packing(size, volume.base)
        if all(packing.add(*dot) for dot in directories.dots(local, start)):
            for batch, cookies in directories.batches(local, start):
                if not packing.add_batch(directories.shown, inode, batch, cookies):
                    break
        if packing.last is None and (packing.full or directories.streams(local)):
            return None
        return packing


def positions_of(volumes: Volumes, handle: int, start: int, last: tuple[int, bytes]) -> dict[int, Position]:
    """Return what a successor must know of a directory that was read from cookie ``start`` on, up to ``last``."""
    cookie, name = last
    if max(start, cookie) > LOCAL_MASK:  # an attach point: then entries come in the order of names
        return {cookie: Position(name)}
    with volumes.of(handle) as fs:
        return fs.directories.positions(handle & LOCAL_MASK, start, cookie, name)
