"""What the store says of objects beside their content: mode, owner, times, extended attributes.

They come with every answer about a single object, so with what is read anyhow: whoever reads a file, fetches it ahead or
loads it, learns them, and that the object is still what it was. Only where nothing has brought them yet are they asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from luxfuse.core import names as naming
from luxfuse.errors import NotFound
from luxfuse.index.entries import Attributes, Entry, Found
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import marker_attributes, parse_attributes
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

CONFIRMED_EVERY_S = 1.0
"""Of the answers that say of an entry what is known, one in so long is recorded."""


class Descriptions:
    """Learns the attributes of the entries of one mount."""

    def __init__(
        self, *, namespace: Namespace, names: Names, store: Store, kernel: Kernel, clock: Callable[[], float] = time.time
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._store = store
        self._kernel = kernel
        self._clock = clock
        self.keeps_attributes = names.keeps_attributes = store.abilities.metadata
        """Whether the store does; else what is known here is all that there is."""
        namespace.attributes = self.attributes

    async def attributes(self, parent: int, name: bytes, entry: Entry) -> Attributes:
        """Return what object metadata says of an entry; asks the store if nothing has told yet. Raises `StoreError`."""
        namespace = self._namespace
        if entry.attributes is not None or not self.keeps_attributes or namespace.is_ours(entry.inode):
            return entry.attributes or Attributes()
        while True:
            moves = await namespace.moving.settled(parent)
            key, asked_s = namespace.key(parent, name, entry.kind), self._clock()
            try:
                info: ObjectInfo | None = await self._store.head(key)
            except NotFound:
                info = None  # a directory without a marker; or an object that is gone, which the next look-up finds out
            if not namespace.moving.since(parent, moves):
                break
        if info is None and entry.kind is Kind.DIRECTORY:
            info = ObjectInfo(key, 0, "", 0, {})
        if info is None:
            return Attributes()
        return self._learn(parent, name, info, asked_s) or parse_attributes(info.metadata) or Attributes()

    def heard(self, info: ObjectInfo, asked_s: float) -> None:
        """Take note of what came with an object's bytes, which were asked for at ``asked_s``."""
        place = self._find(info.key)
        if place is None:
            return
        parent, name, entry = place
        if entry.attributes is None or not 0 <= asked_s - entry.checked_s < CONFIRMED_EVERY_S:
            self._learn(parent, name, info, asked_s)

    def _find(self, key: str) -> tuple[int, bytes, Entry] | None:
        """Return (directory, name, entry) of an object that has a name here."""
        directory = ROOT_INODE
        *above, last = key.split("/")
        for part in above:
            entry = self._names.get(directory, part.encode())
            if entry is None or entry.kind is not Kind.DIRECTORY:
                return None
            directory = entry.inode
        classified = naming.classify(last)
        found = self._names.get(directory, classified[0]) if classified is not None else None
        if classified is None or found is None or found.kind is not classified[1]:
            return None
        return directory, classified[0], found

    def _learn(self, parent: int, name: bytes, info: ObjectInfo, asked_s: float) -> Attributes | None:
        """Record what was said of a name; None if that is not what stands there now."""
        attributes = parse_attributes(info.metadata)
        known = self._names.get(parent, name)
        if attributes is None or known is None:
            return None
        before = known.attributes
        if known.kind is Kind.DIRECTORY:
            attributes = marker_attributes(before, attributes)
        found = Found(name, known.kind, info.size, info.version, info.mtime_ns)
        try:
            entry = self._names.describe(parent, name, found, asked_s, attributes, self._clock())
        except OSError as exc:  # the index takes no changes now: it is asked for again
            log.info("what the store says of %r cannot be recorded: %s", info.key, exc)
            return None
        if entry is not None and before is not None and before != attributes:
            self._kernel.invalidate_inode(entry.inode)
        return entry.attributes if entry is not None else None
