"""Extended attributes: those that programs set, which travel with the object, and ours, which say how a file is cached."""

from __future__ import annotations

import os

from luxfuse.cache.page_cache import PageCache
from luxfuse.index.names import ROOT_INODE
from luxfuse.types import Kind
from luxfuse.vfs.describing import Describing
from luxfuse.vfs.descriptions import Descriptions
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.errors import NoSuchAttribute, NotPermitted, NotSupported
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.refusals import Refusals
from luxfuse.vfs.room import Room

OWN_PREFIX = b"user.luxfuse."
OWN = (b"version", b"cached_bytes", b"tier", b"state")
SELINUX = b"security.selinux"


class ExtendedAttributes:
    """The extended attributes of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        descriptions: Descriptions,
        entries: DirtyEntries,
        cache: PageCache,
        room: Room,
        describing: Describing,
        refusals: Refusals,
    ) -> None:
        self._namespace = namespace
        self._descriptions = descriptions
        self._dirty = entries
        self._cache = cache
        self._room = room
        self._describing = describing
        self._refusals = refusals

    async def get(self, inode: int, name: bytes) -> bytes:
        """Return an extended attribute: one that was set, or one of ``user.luxfuse.*`` of a file."""
        if name.startswith(OWN_PREFIX):
            return self._own(inode, name[len(OWN_PREFIX) :])
        if name == b"security.capability":  # the kernel asks, and would pass on any other error
            raise NoSuchAttribute(f"no attribute {name!r}")
        if name.startswith(b"system."):
            raise NotSupported(f"{name!r}: attributes of that kind are not kept")
        # `ls -l` looks for security.selinux in every file; that is not worth a request to the store for each.
        value = (await self._describing.xattrs(inode, ask=not name.startswith(b"security."))).get(os.fsdecode(name))
        if value is None and name == SELINUX:  # no label is ever made here: `ls` then leaves the other files alone
            raise NotSupported("no security labels are kept here")
        if value is None:
            raise NoSuchAttribute(f"no attribute {name!r}")
        return value

    def _own(self, inode: int, name: bytes) -> bytes:
        if inode == ROOT_INODE or name not in OWN:
            raise NoSuchAttribute(f"no attribute {name!r}")
        parent, base, entry = self._namespace.places.locate(inode)
        if entry.kind is not Kind.FILE:
            raise NoSuchAttribute(f"no attribute {name!r}")
        dirty = self._dirty.get(inode)
        tier: str
        if dirty is not None and dirty.source is not None:
            cached, state, tier = dirty.source.bytes.size, "dirty", self._room.tier_of(dirty)
        else:
            key = self._namespace.places.key(parent, base, entry.kind)
            cached, tier = self._cache.cached_bytes(key, entry.version, entry.size) if entry.size else (0, "none")
            state = "cached" if cached == entry.size else "partial" if cached else "remote"
        values = {"version": entry.version, "cached_bytes": str(cached), "state": state, "tier": tier}
        return values[name.decode()].encode()

    async def names(self, inode: int) -> list[bytes]:
        """Return the names of the extended attributes that programs have set.

        Not those of ``user.luxfuse.*``: a program that copies attributes would write them onto its copy. As for
        `FileSystem.getattr`, nothing is asked for where objects are not thought to carry attributes: `ls -l` lists them
        for each file.
        """
        ask = False
        if self._dirty.get(inode) is None and inode != ROOT_INODE:
            parent, _, entry = self._namespace.places.locate(inode)
            ask = self._descriptions.lacks(parent, entry)
        found = [os.fsencode(name) for name in await self._describing.xattrs(inode, ask=ask)]
        return [name for name in found if not name.startswith(OWN_PREFIX)]

    async def set(self, inode: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute; it travels in the object's metadata."""
        if name.startswith(OWN_PREFIX):
            raise NotPermitted(f"{name!r} is read-only")
        self._refusals.check_inode(inode)
        if not name.startswith((b"user.", b"trusted.", b"security.")):
            raise NotSupported(f"{name!r}: attributes of that kind are not kept")
        await self._describing.set_xattrs(inode, {**await self._describing.xattrs(inode), os.fsdecode(name): value})

    async def remove(self, inode: int, name: bytes) -> None:
        """Remove an extended attribute."""
        if name.startswith(OWN_PREFIX):
            raise NotPermitted(f"{name!r} is read-only")
        self._refusals.check_inode(inode)
        xattrs = await self._describing.xattrs(inode)
        if xattrs.pop(os.fsdecode(name), None) is None:
            raise NoSuchAttribute(f"no attribute {name!r}")
        await self._describing.set_xattrs(inode, xattrs)
