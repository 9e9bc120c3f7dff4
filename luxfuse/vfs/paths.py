"""Where an inode or handle of the kernel is, for people: its path in the mount."""

from __future__ import annotations

import os

from luxfuse.errors import LuxError
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.shares import LOCAL_MASK
from luxfuse.vfs.volumes import Volume, Volumes


def path_of(volumes: Volumes, inode: int) -> str | None:
    """Return the path of an inode, relative to the mount: "" for its root; None if it has no name any more."""
    volume = volumes.find(inode)
    if volume is None or volume.fs is None:
        return None
    places = volume.fs.namespace.places
    inside: list[str] = []
    local = inode & LOCAL_MASK
    if local != ROOT_INODE:
        try:
            parent, name = places.place(local)
            inside = [places.prefix(parent).rstrip("/"), os.fsdecode(name)]
        except LuxError:
            return None
    return "/".join(part for part in (*_way_to(volume), *inside) if part)


def name_in(volumes: Volumes, parent: int, name: bytes) -> str:
    """Return the path of a name in a directory; the name alone, after ``?``, if that has no path any more."""
    above = path_of(volumes, parent)
    return "/".join(part for part in ("?" if above is None else above, os.fsdecode(name)) if part)


def size_of(volumes: Volumes, inode: int) -> int:
    """Return the size of a file in bytes, as far as it is known; else 0."""
    volume = volumes.find(inode)
    if volume is None or volume.fs is None:
        return 0
    local, files = inode & LOCAL_MASK, volume.fs.files
    if (staged := files.staged_size(local)) is not None:
        return staged
    try:
        return (files.open_entry(local) or volume.fs.namespace.places.locate(local)[2]).size
    except LuxError:
        return 0


def source_of(volumes: Volumes, inode: int) -> str | None:
    """Return where the content of an inode lies here: ``staging``, or a tier; None if it is not known."""
    volume = volumes.find(inode)
    if volume is None or volume.fs is None:
        return None
    return volume.fs.files.source_of(inode & LOCAL_MASK)


def inode_of(volumes: Volumes, handle: int) -> int | None:
    """Return the inode of a handle without marks that is copied; None if it is not open any more."""
    volume = volumes.find(handle)
    if volume is None or volume.fs is None:
        return None
    try:
        return volume.base | volume.fs.files.copied.opened_as(handle & LOCAL_MASK)[0]
    except LuxError:
        return None


def _way_to(volume: Volume) -> list[str]:
    way: list[str] = []
    node = volume.node
    while node.parent is not None:
        way.append(os.fsdecode(node.name))
        node = node.parent
    return way[::-1]
