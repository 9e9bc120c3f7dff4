"""Copies of interrupted moves: they replace what was under the new key when the move was begun, and nothing newer.

What somebody else has written there since stays, as that came later; ours is kept in the recovered directory. Whether an
object under the new key is our copy, made before the kill, is seen by what both objects say of themselves, or by their
bytes; but what was there when the move was begun is none, however much it looks like one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.errors import NotFound, StoreUnavailable, VersionChanged
from luxfuse.steps import reached
from luxfuse.types import ABSENT, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import parse_attributes
from luxfuse.vfs.moves.noted import Over, Sent

log = logging.getLogger(__name__)

ROUNDS = 5
"""How often others may write to one of both keys while they are looked at; then it is tried again later."""

COMPARISONS, COMPARED_BYTES = 2, 1 << 20
"""How many pairs of objects are compared at a time, by pieces of what size: these bytes are outside of the memory limit."""


class Targets:
    """Copies objects of one mount to their new keys."""

    def __init__(self, store: Store, recovered: Recovered) -> None:
        self._store = store
        self._recovered = recovered
        self._comparing = trio.CapacityLimiter(COMPARISONS)
        self._kept: dict[str, tuple[str, str]] = {}
        """Of sources that are still there: their versions and targets, which are in the recovered directory."""

    async def find(self, key: str) -> ObjectInfo | None:
        """Return the object under a key, None if there is none. Raises `StoreError`."""
        try:
            return await self._store.head(key)
        except NotFound:
            return None

    async def copy(
        self, source: str, target: str, version: str | None, over: Over, newer: Sent = ()
    ) -> tuple[bool, ObjectInfo | None]:
        """Copy an object, if it is there and of that version. Returns whether it is, and so has to go, and the copy.

        There is none where somebody else's object stays, or one of the contents ``newer``, which are ours. Raises
        `StoreError`, OSError.
        """
        for _ in range(ROUNDS):
            info = await self.find(source)
            if info is None or version not in (None, info.version):
                return False, None
            there = await self.find(target)
            # What may be replaced can look like a copy, and is none; if it is one all the same, it is made again.
            if there is not None and not over.covers(there, mtime_of(there)):
                if await self.is_copy(info, there):
                    return True, there
                if (mtime_of(there), there.size) not in newer:
                    await self._give_way(info, target)
                return True, None
            try:
                expect = ABSENT if there is None else there.version
                copied = await self._store.copy(source, target, version=info.version, expect=expect, size=info.size)
            except (NotFound, VersionChanged):
                continue
            reached("recover.copied")
            return True, copied
        raise StoreUnavailable(f"{source!r} or {target!r} changes again and again in the under-store")

    async def _give_way(self, info: ObjectInfo, target: str) -> None:
        """Somebody else has written the object under the new key: keep ours, once. Raises `StoreError`, OSError."""
        if self._kept.get(info.key) == (info.version, target):
            return
        kept = await self._recovered.save_object(self._store, info, target)
        log.warning(
            "%r was written by somebody else since %r was to be renamed to it; our version is kept as %s",
            target, info.key, kept,
        )  # fmt: skip
        self._kept[info.key] = info.version, target

    async def is_copy(self, info: ObjectInfo, other: ObjectInfo) -> bool:
        """Whether ``other`` is a copy of an object; both with their metadata. Raises `StoreError`."""
        if info.size != other.size or (info.metadata or {}) != (other.metadata or {}):
            return False
        if not info.size or info.version == other.version or mtime_of(info) is not None:
            return True
        async with self._comparing:
            for start in range(0, info.size, COMPARED_BYTES):  # they say nothing of themselves
                end = min(start + COMPARED_BYTES, info.size)
                ours = await self._store.read(info.key, start, end, info.version)
                if bytes(ours) != bytes(await self._store.read(other.key, start, end, other.version)):
                    return False
        return True

    def gone(self, sources: Iterable[str]) -> None:
        """They are removed: no retry comes back to them."""
        for source in sources:
            self._kept.pop(source, None)


def mtime_of(info: ObjectInfo) -> int | None:
    """Return the time that an object with its metadata says of itself."""
    said = parse_attributes(info.metadata)
    return None if said is None else said.mtime_ns
