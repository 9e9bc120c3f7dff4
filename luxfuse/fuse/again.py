"""The answers to changes that a daemon before this one has made (`once`): their names, and what these stand for now."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Protocol

from luxfuse.fuse.attributes import caller_of, to_kernel
from luxfuse.fuse.lowlevel import pyfuse3
from luxfuse.fuse.once import Begun, BegunFact, NotMade
from luxfuse.index.numbers import ANEW_SHIFT
from luxfuse.vfs.attributes import Stat
from luxfuse.vfs.errors import NoSuchName
from luxfuse.vfs.shares import LOCAL_MASK
from luxfuse.vfs.volumes import Volume, Volumes

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


class Handlers(Protocol):
    """The operations of a mount."""

    volumes: Volumes
    begun: Begun

    def opened(self, volume: Volume, handle: int, flags: int, unique: int, inode: int) -> pyfuse3.FileInfo:
        """Return the answer to an open in a volume."""


def first_name(parent: int, name: bytes, *_: Any) -> tuple[int, bytes]:
    """Return what a change is about."""
    return parent, name


def second_name(_inode: int, parent: int, name: bytes, *_: Any) -> tuple[int, bytes]:
    """As `first_name`, of a link."""
    return parent, name


def third_name(_parent: int, _name: bytes, parent: int, name: bytes, *_: Any) -> tuple[int, bytes]:
    """Return the new name of a rename."""
    return parent, name


async def _made(self: Handlers, fact: BegunFact, parent: int, name: bytes) -> tuple[Volume, Stat]:
    """Return what a change has made that was begun by a daemon before. Raises `NotMade`."""
    volume = self.volumes.of_name(parent, name)
    with volume as fs:
        stat = await fs.made(parent & LOCAL_MASK, name, fact.first_new)
    if stat is None:
        raise NotMade
    return volume, stat


async def made_name(
    self: Handlers, fact: BegunFact, _unique: int, parent: int, name: bytes, *_: Any
) -> pyfuse3.EntryAttributes:
    """Return the attributes of what was made."""
    volume, stat = await _made(self, fact, parent, name)
    return to_kernel(stat, volume.base)


async def made_link(self: Handlers, fact: BegunFact, unique: int, _inode: int, parent: int, name: bytes, *_: Any) -> Any:
    """As `made_name`, of a link."""
    return await made_name(self, fact, unique, parent, name)


async def made_file(
    self: Handlers, fact: BegunFact, unique: int, parent: int, name: bytes, _mode: int, flags: int, ctx: Any
) -> Any:
    """Open the file that was made; returns the answer to a CREATE."""
    volume, stat = await _made(self, fact, parent, name)
    with volume as fs:
        handle = await fs.open(stat.inode, flags & ~os.O_TRUNC, caller_of(ctx))
    return self.opened(volume, handle, flags, unique, volume.base | stat.inode), to_kernel(stat, volume.base, created=True)


async def removed(self: Handlers, _fact: BegunFact, *_: Any) -> None:
    """The name was there, and is gone."""


async def renamed(
    self: Handlers,
    fact: BegunFact,
    _unique: int,
    _parent: int,
    _name: bytes,
    new_parent: int,
    new_name: bytes,
    flags: int,
    *_: Any,
) -> None:
    """Raise `NotMade` unless the new name stands for what the old one did, or, where the store was asked, for something."""
    with self.volumes.of(new_parent) as fs:
        stat = await fs.lookup(new_parent & LOCAL_MASK, new_name)
        old = fs.namespace.number_now(fact.inode)
    if flags & RENAME_NOREPLACE and old and stat.inode != old:
        raise NotMade


async def is_another(self: Handlers, fact: BegunFact, parent: int, name: bytes, *_: Any) -> bool:
    """Whether a name that was to be removed stands for something else by now: then what it stood for is gone.

    Such as the symlink or the directory that showed when the file of its name was gone, or what another node has made. Not
    what has another number for another reason: as its inode was renumbered, or as the index has begun anew since.
    """
    if not fact.inode:
        return False
    with self.volumes.of_name(parent, name) as fs, contextlib.suppress(NoSuchName):
        found = (await fs.lookup(parent & LOCAL_MASK, name)).inode
        old = fs.namespace.number_now(fact.inode)
        return found != old and found >> ANEW_SHIFT == old >> ANEW_SHIFT
    return False


async def turned(
    self: Handlers, fact: BegunFact, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, *_: Any
) -> bool:
    """Whether a rename was made already. The old name may stand for something else by now, which must not move as well.

    That is what it was exchanged with, or a whiteout, or an object that has come to show as the other one is gone.
    """
    now = self.begun.inode(parent, name), self.begun.inode(new_parent, new_name)
    with self.volumes.of(parent) as fs:
        inode, other = fs.namespace.number_now(fact.inode), fs.namespace.number_now(fact.other)
    if flags & RENAME_EXCHANGE:
        return now == (other, inode)
    if flags & RENAME_WHITEOUT and self.begun.is_special_since(fact, parent, name):
        return True
    return bool(inode) and now[1] == inode
