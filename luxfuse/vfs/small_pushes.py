"""Pushes of entries without staging files: the markers of directories, and symlinks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from luxfuse.cache.checksums import has_same_content
from luxfuse.cache.disk import checksum
from luxfuse.errors import NotFound, StoreUnavailable, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.types import ABSENT, Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import to_metadata
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.keeping import foreign, keep

CONFLICT_ROUNDS = 5
MARKED = "marker"
"""As the version of a directory: the store has a marker object of it."""


async def push_marker(store: Store, dirty: Dirty, entry: Entry) -> ObjectInfo:
    """Make the marker of a directory, or change its attributes; content that somebody has given it stays.

    Raises `StoreError`.
    """
    key, metadata = dirty.key, to_metadata(Kind.DIRECTORY, entry.attributes)
    able = store.abilities
    if able.hierarchical:
        return await store.put(key, b"", metadata)
    expect = ABSENT if able.conditional else None
    for attempt in range(CONFLICT_ROUNDS):
        if attempt or entry.version == MARKED or expect is None:
            try:
                found = await store.head(key)
            except NotFound:
                found = ObjectInfo(key, 0, ABSENT, 0)
            if found.version != ABSENT and entry.attributes is None:
                return found  # it is there, and says what we do not know
            expect = found.version if able.conditional else None
            if found.size:
                metadata = {**(found.metadata or {}), **metadata}
                return await store.copy(key, key, version=found.version, metadata=metadata, size=found.size)
        try:
            return await store.put(key, b"", metadata, expect=expect)
        except VersionChanged:
            continue
    raise StoreUnavailable(f"{key!r} changes again and again in the under-store")


async def push_symlink(
    store: Store, dirty: Dirty, entry: Entry, differs: Callable[[Dirty, ObjectInfo], Awaitable[None]]
) -> ObjectInfo:
    """Write the object of a symlink. ``differs`` is called where somebody else has written another one meanwhile.

    Raises `StoreError`.
    """
    kept = await keep(store, dirty)
    metadata = {**foreign(kept), **to_metadata(dirty.kind, entry.attributes)}
    for _ in range(CONFLICT_ROUNDS):
        if dirty.stored.expect is None:
            dirty.stored.expects(await _version(store, dirty.key))
        expect = dirty.stored.expect if store.abilities.conditional else None
        try:
            return await store.put(dirty.key, dirty.target, metadata, expect=expect, keep=kept)
        except (VersionChanged, NotFound):
            await _look_again(store, dirty, differs)
    raise StoreUnavailable(f"{dirty.key!r} changes again and again in the under-store")


async def _version(store: Store, key: str) -> str:
    try:
        return (await store.head(key)).version
    except NotFound:
        return ABSENT


async def _look_again(store: Store, dirty: Dirty, differs: Callable[[Dirty, ObjectInfo], Awaitable[None]]) -> None:
    """The store has another version than expected: ours, of which no answer came, or that of somebody else."""
    try:
        info = await store.head(dirty.key)
    except NotFound:
        dirty.stored.expects(ABSENT)
        return
    size = len(dirty.target)
    if info.size == size and await has_same_content(store, info, {0: checksum(memoryview(dirty.target))}, size):
        dirty.stored.expects(info.version)
    elif info.version == dirty.stored.expect:
        raise StoreUnavailable(f"{dirty.key!r}: the under-store contradicts itself about its version")
    else:
        await differs(dirty, info)
