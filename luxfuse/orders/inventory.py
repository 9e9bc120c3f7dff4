"""Cached content by path and place: for ``luxfuse locate``, and for ``luxfuse free`` to drop it.

The index is searched for it, from one end to the other: nobody is asked, and versions that the store has no more are found
as well. Paths may hold patterns, as those of `load`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.cache.staged import StagedBytes
from luxfuse.core.names import path_of
from luxfuse.core.paths import covers
from luxfuse.core.spans import ranges_text
from luxfuse.errors import LuxError
from luxfuse.index.entries import Entry
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.objects import Objects
from luxfuse.tiers.staging import Staging
from luxfuse.types import PAGE_BYTES, Kind
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.namespace import Namespace

SCAN_OBJECTS = 500
LINES = 200
"""Files told of in detail."""
POLL_S = 0.1
OPEN = "is open, or being loaded"
WRITTEN = "is open for writing"
DIRTY = "is not in the under-store yet"


@dataclass(slots=True)
class FreeProgress:
    """How far a `free` has come. ``kept`` counts the files that stay, by why; ``lines`` tells of the first of them."""

    freed_files: int = 0
    freed_bytes: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: bool = False

    def keep(self, path: str, why: str) -> None:
        """Count a file that stays."""
        self.kept[why] = self.kept.get(why, 0) + 1
        if len(self.lines) < LINES:
            self.lines.append(f"{path}: {why}")


class Nodes(Protocol):
    """The other nodes of a cluster."""

    def nodes_of(self, oid: bytes, size: int) -> list[dict[str, object]]:
        """Return which of them hold an object of this id and size, as `locate` tells it."""


class Inventory:
    """Finds, and drops, what is cached of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        cache: PageCache,
        objects: Objects,
        dirty: DirtyEntries,
        staging: Staging,
        nodes: Nodes | None,
    ) -> None:
        """``nodes``: the cluster's, if the mount is in one."""
        self._namespace = namespace
        self._cache = cache
        self._objects = objects
        self._dirty = dirty
        self._staging = staging
        self._nodes = nodes

    # -- dropping

    async def free(self, paths: Sequence[str]) -> AsyncGenerator[FreeProgress, None]:
        """Drop what is cached at and below ``paths`` (relative to the mount); yields how far that is."""
        state = FreeProgress()
        matchers = {path: covers(path) for path in paths}
        matched: set[str] = set()
        for dirty in self._dirty:
            if dirty.source is not None and _note(path_of(dirty.key), matchers, matched):
                state.keep(path_of(dirty.key), DIRTY if dirty.must_push else WRITTEN)
        told_s = trio.current_time()
        async for oid, record in self.scan():
            path = path_of(record.key)
            if _note(path, matchers, matched):
                await self._drop(oid, path, state)
            if trio.current_time() - told_s > POLL_S:
                yield state
                told_s = trio.current_time()
        for path in paths:
            if path not in matched and (why := await self.missing(path)) is not None:
                state.failures.append(f"{path}: {why}")
        state.done = True
        yield state

    async def _drop(self, oid: bytes, path: str, state: FreeProgress) -> None:
        space = self._space_of(oid)
        if space is None:
            return  # it has just gone, or its directory is not in use
        if not self._cache.contents.let_go(oid):
            state.keep(path, OPEN)
            return
        freed = await space.remove(oid)
        if freed is None:
            state.failures.append(f"{path}: cannot be removed: {space.degraded}")
            return
        state.freed_files += 1
        state.freed_bytes += freed

    async def drop(self, oid: bytes) -> bool:
        """Drop what is cached of an object unless that is in use; returns whether it was dropped."""
        space = self._space_of(oid)
        return space is not None and self._cache.contents.let_go(oid) and await space.remove(oid) is not None

    def _space_of(self, oid: bytes) -> Space | None:
        number = self._objects.directory_of(oid)
        return None if number is None or oid in self._cache.hierarchy.removing else self._cache.hierarchy.by_number(number)

    async def missing(self, path: str) -> str | None:
        """Say why a path of which nothing is cached leads nowhere; None if it is only not cached."""
        try:
            await self._find(path)
        except LuxError as exc:
            return "there is no such file or directory" if exc.errno in (2, 20) else str(exc)
        return None

    async def _find(self, path: str) -> Entry:
        entry = self._namespace.root
        for name in path.split("/") if path else ():
            entry = await self._namespace.lookup(entry.inode, os.fsencode(name))
        return entry

    async def scan(self) -> AsyncGenerator[tuple[bytes, ObjectRecord], None]:
        """Yield all objects that are recorded."""
        await self._objects.flush()
        after = b""
        while True:
            found = self._objects.scan(after, SCAN_OBJECTS)
            for item in found:
                yield item
            if len(found) < SCAN_OBJECTS:
                return
            after = found[-1][0]
            await trio.lowlevel.checkpoint()

    # -- looking

    async def locate(self, paths: Sequence[str]) -> list[dict[str, object]]:
        """Return a description of each path: see `luxfuse.control.orders`."""
        described: dict[str, dict[str, object]] = {}
        directories: dict[str, _Summary] = {}
        for path in paths:
            try:
                entry = await self._find(path)
            except LuxError as exc:
                missing = exc.errno in (2, 20)
                described[path] = {"path": path, "error": "there is no such file or directory" if missing else str(exc)}
                continue
            if entry.kind is Kind.DIRECTORY:
                directories[path] = _Summary(covers(path))
            elif entry.kind is Kind.SPECIAL:
                described[path] = {"path": path, "error": "is no file of the under-store: it is local only"}
            else:
                described[path] = self._file(path, entry)
        if directories:
            async for _, record in self.scan():
                for summary in directories.values():
                    if summary.covers(path_of(record.key)):
                        summary.add(record)
        for path, summary in directories.items():
            described[path] = self._directory(path, summary)
        return [described[path] for path in paths]

    def _file(self, path: str, entry: Entry) -> dict[str, object]:
        dirty = self._dirty.get(entry.inode)
        if dirty is not None and dirty.source is not None:
            return self._written(path, dirty, dirty.source.bytes)
        parent, name = self._namespace.places.place(entry.inode)
        obj = self._cache.acquire(self._namespace.places.key(parent, name, entry.kind), entry.version, entry.size)
        try:
            present = [page for page in range(obj.pages.total) if obj.pages.has(page)]
            absent = [page for page in range(obj.pages.total) if not obj.pages.has(page)]
            places = []
            if present and obj.space is not None:
                places.append({
                    "tier": obj.space.tier, "directory": obj.space.directory.name, "pages": ranges_text(present),
                    "file": str(obj.space.directory.file_of(obj.oid)), "bytes": obj.cached_bytes,
                })  # fmt: skip
            return {
                "path": path, "kind": "file", "size": entry.size, "page_bytes": PAGE_BYTES, "state": "clean",
                "places": places, "missing_pages": ranges_text(absent),
                "nodes": self._nodes.nodes_of(obj.oid, entry.size) if self._nodes is not None else [],
            }  # fmt: skip
        finally:
            self._cache.release(obj)

    def _written(self, path: str, dirty: Dirty, content: StagedBytes) -> dict[str, object]:
        """Describe a file that is written to: its content is in one staging file, but for what only the store has."""
        space = self._cache.hierarchy.of(self._staging.directory_of(dirty.number))
        size = content.size
        return {
            "path": path, "kind": "file", "size": size, "page_bytes": PAGE_BYTES,
            "state": "dirty" if dirty.must_push else "open for writing",
            "places": [{
                "tier": space.tier, "directory": space.directory.name, "pages": "" if not content.complete else "all",
                "file": str(self._staging.path_of(dirty.number)), "bytes": size,
            }],
            "missing_pages": "", "nodes": [],
        }  # fmt: skip

    def _directory(self, path: str, summary: _Summary) -> dict[str, object]:
        tiers = []
        for number in sorted(summary.files):
            space = self._cache.hierarchy.by_number(number)
            if space is not None:
                tiers.append({
                    "tier": space.tier, "directory": space.directory.name, "files": summary.files[number],
                    "bytes": summary.bytes[number],
                })  # fmt: skip
        below = [d for d in self._dirty if d.source is not None and summary.covers(path_of(d.key))]
        return {
            "path": path, "kind": "directory", "tiers": tiers, "whole_files": summary.whole,
            "partial_files": summary.partial, "dirty_files": sum(d.must_push for d in below),
        }  # fmt: skip


@dataclass(slots=True)
class _Summary:
    """The cached content at and below a path, by the numbers of cache directories."""

    covers: Callable[[str], bool]
    files: Counter[int] = field(default_factory=Counter)
    bytes: Counter[int] = field(default_factory=Counter)
    whole: int = 0
    partial: int = 0

    def add(self, record: ObjectRecord) -> None:
        self.files[record.directory] += 1
        self.bytes[record.directory] += record.allocated_bytes
        self.whole += record.whole
        self.partial += not record.whole


def _note(path: str, matchers: dict[str, Callable[[str], bool]], matched: set[str]) -> bool:
    """Whether one of the paths covers ``path``; notes which."""
    found = [given for given, matches in matchers.items() if matches(path)]
    matched.update(found)
    return bool(found)
