"""``luxfuse index``: writes the names of an under-store to a manifest, and takes those of one up.

What is taken up counts as what the store said when the manifest was made: so it holds for what is left of ``metadata-ttl``,
gives way to all that is known better here, and the version that a name has is asked of the store with the first page that
is fetched of it.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from luxfuse.core.units import format_age, format_count
from luxfuse.errors import LuxError
from luxfuse.index.entries import Attributes, Described, Found
from luxfuse.index.manifest import PART_ENTRIES, Head, Item, ManifestFile, ManifestRefused, ManifestWriter, Part
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.types import Kind
from luxfuse.vfs.errors import Moved
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

PAGE_ENTRIES = 1000
DESCRIBED_AT_ONCE = 200
"""Attributes are recorded by the event loop: so many in one go."""
FAILURES_TOLD = 20
PARTS_AT_ONCE = 256
PATIENCE_S = 30.0
"""So long a mount waits for its manifest: a service manager gives up on one that takes much longer."""


@dataclass(frozen=True, slots=True)
class ManifestProgress:
    """How far it is. ``skipped``: directories of which something newer is known, or that are not there any more.

    ``failures``: a line for each of the first directories that could not be listed; ``note``: what is to be known besides.
    """

    directories: int
    entries: int
    skipped: int
    failures: tuple[str, ...] = ()
    note: str | None = None
    done: bool = False


class _Job:
    """What both have in common: numbers, an end, and a reason."""

    def __init__(self) -> None:
        self.directories = self.entries = self.skipped = 0
        self.failures: list[str] = []
        self.note: str | None = None
        self.refused: LuxError | None = None
        self._scope = trio.CancelScope()
        self.ended = trio.Event()

    def stop(self) -> None:
        """End it soon."""
        self._scope.cancel()

    def progress(self) -> ManifestProgress:
        """Return how far it is. Raises `LuxError`, the reason why it ended."""
        if self.refused is not None:
            raise self.refused
        return ManifestProgress(
            self.directories, self.entries, self.skipped, tuple(self.failures), self.note, self.ended.is_set()
        )

    def _fail(self, path: str, why: str) -> None:
        self.skipped += 1
        if len(self.failures) < FAILURES_TOLD:
            self.failures.append(f"{path or '.'}: {why}")

    async def run(self) -> None:
        """Do it, until it is done or `stop`ped."""
        try:
            with self._scope:
                await self._run()
        except LuxError as exc:
            self.refused = exc
        except OSError as exc:
            self.refused = ManifestRefused(f"{exc.filename or 'the manifest'}: {exc.strerror or exc}")
        except Exception:
            log.exception("a manifest failed in an unexpected way")
            self.refused = ManifestRefused("unexpected error in the daemon; see its log")
        finally:
            self.ended.set()

    async def _run(self) -> None:
        raise NotImplementedError


class Export(_Job):
    """Writes all names of an under-store to a file; directories that were not listed lately are listed for it."""

    def __init__(self, namespace: Namespace, names: Names, file: str, source: str, source_id: str) -> None:
        """``source``: its URL, without secrets."""
        super().__init__()
        self._namespace = namespace
        self._names = names
        self._path = Path(file)
        self._head = Head(source=source, source_id=source_id, made_s=namespace.now_s())

    async def _run(self) -> None:
        writer = await trio.to_thread.run_sync(ManifestWriter, self._path, self._head)
        try:
            waiting = [(ROOT_INODE, "")]
            while waiting:
                waiting += reversed(await self._directory(writer, *waiting.pop()))
            if self.failures:
                raise ManifestRefused(f"no manifest is written, as a directory cannot be listed: {self.failures[0]}")
            await trio.to_thread.run_sync(writer.finish)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(writer.close)

    async def _directory(self, writer: ManifestWriter, inode: int, path: str) -> list[tuple[int, str]]:
        """Write a directory; returns those in it."""
        namespace = self._namespace
        try:
            await namespace.relisting.listed(inode)
        except LuxError as exc:
            self._fail(path, str(exc))
            return []
        listing = self._names.listings.of(inode)
        if listing is None:
            return []
        await trio.to_thread.run_sync(writer.begin, path, listing.fetched_s)
        self.directories += 1
        below: list[tuple[int, str]] = []
        after = b""
        while entries := namespace.after(inode, after, PAGE_ENTRIES):
            after = entries[-1][0]
            items: list[Item] = []
            for name, entry in entries:
                if entry.kind is Kind.SPECIAL or namespace.is_held(inode, name):
                    continue  # the store does not have it as it is here
                if entry.kind is Kind.DIRECTORY:
                    below.append((entry.inode, f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)))
                found = Found(name, entry.kind, entry.size, entry.version, entry.mtime_ns)
                items.append((found, entry.attributes if entry.kind is not Kind.DIRECTORY else None))
            await trio.to_thread.run_sync(writer.add, items)
            self.entries += len(items)
        return below


class Import(_Job):
    """Takes up what a manifest has, but where something newer is known."""

    def __init__(
        self,
        namespace: Namespace,
        names: Names,
        flush: Callable[[], Awaitable[None]],
        file: str,
        source: str,
        source_id: str,
    ) -> None:
        """``flush``: brings the index to the disk. ``source``: the URL of the under-store, without secrets."""
        super().__init__()
        self._namespace = namespace
        self._names = names
        self._flush = flush
        self._head: Head | None = None
        self._path = Path(file)
        self._file: ManifestFile | None = None
        self._source = source
        self._source_id = source_id
        self._inodes: tuple[str, int] = "", ROOT_INODE
        """The directory that was met last: most have the same one above them."""
        self._next: Part | None = None
        self._queue: deque[Part] = deque()
        self._described: list[tuple[Found, Attributes]] = []
        """Attributes of entries that are being recorded."""

    async def _run(self) -> None:
        try:
            head = self._head or await self.check()
            assert self._file is not None
            parts = self._file.read()
            self._next = await self._read(parts)
            while self._next is not None:
                await self._directory(parts, self._next)
            await self._flush()
        finally:
            self.close()
        age_s = max(0.0, self._namespace.now_s() - head.made_s)
        if age_s > self._namespace.belief.ttl_s:
            self.note = (
                f"the manifest was made {format_age(age_s)} ago, which is longer than metadata-ttl: each directory is "
                "listed again when it is used; mount with a longer --metadata-ttl if the data does not change"
            )

    async def open(self) -> bytes:
        """Open the manifest, once for all that follows; returns what tells it from others. Raises `ManifestRefused`."""
        self._file = await trio.to_thread.run_sync(ManifestFile, self._path)
        return self._file.identity

    def close(self) -> None:
        """Close the manifest; may be called again."""
        if self._file is not None:
            self._file.close()

    async def check(self) -> Head:
        """Make sure that the manifest is whole, and of this source. Raises `ManifestRefused`."""
        if self._file is None:
            await self.open()
        assert self._file is not None
        self._head = await trio.to_thread.run_sync(self._file.check, self._source_id, self._source)
        return self._head

    async def _read(self, parts: Iterator[Part]) -> Part | None:
        """Return the next part; a thread reads small ones many at a time."""
        if not self._queue:
            self._queue += await trio.to_thread.run_sync(_some, parts)
        return self._queue.popleft() if self._queue else None

    async def _directory(self, parts: Iterator[Part], first: Part) -> None:
        """Take up one directory, and read on to the next one."""
        path, namespace, taken = first.directory, self._namespace, False
        try:
            inode = self._inode(path)
            if inode is not None:
                moves = await namespace.moving.under_one_name(inode)
                prefix = namespace.places.prefix(inode)
                async with aclosing(self._items(parts, first, inode)) as items:
                    with suppress(Moved):  # it is skipped
                        taken = await namespace.lister.replay(inode, prefix, moves, first.asked_s, items)
                await self._describe(inode, first.asked_s)
        except ManifestRefused:
            raise
        except LuxError as exc:
            self._fail(path, str(exc))
        else:
            self.directories += taken
            self.skipped += not taken
        while self._next is not None and self._next.directory == path:
            if self._next.last:
                self._next = await self._read(parts)
                return
            self._next = await self._read(parts)

    async def _items(self, parts: Iterator[Part], part: Part | None, inode: int) -> AsyncGenerator[list[Found], None]:
        path, asked_s = part.directory if part else "", part.asked_s if part else 0.0
        while part is not None:
            yield [found for found, _ in part.items]
            # The one before is recorded by now.
            await self._describe(inode, asked_s)
            self._described = [(found, attributes) for found, attributes in part.items if attributes is not None]
            self.entries += len(part.items)
            if part.last:
                return
            part = self._next = await self._read(parts)
            assert part is None or part.directory == path

    async def _describe(self, inode: int, asked_s: float) -> None:
        """Record the attributes of the part before."""
        described, self._described = self._described, []
        for start in range(0, len(described), DESCRIBED_AT_ONCE):
            some = described[start : start + DESCRIBED_AT_ONCE]
            told = [Described(inode, found, asked_s, attributes) for found, attributes in some]
            self._names.describe(told, self._namespace.now_s())
            await trio.lowlevel.checkpoint()

    def _inode(self, path: str) -> int | None:
        """Return the inode of a directory that is known here, None if there is none of the name."""
        parent, _, name = path.rpartition("/")
        if self._inodes[0] != parent or not path:
            self._inodes = parent, self._walk(parent) if parent else ROOT_INODE
        if not path:
            return ROOT_INODE
        above = self._inodes[1]
        return self._child(above, name) if above else None

    def _walk(self, path: str) -> int:
        """Return the inode of a directory, 0 if it is not known."""
        inode = ROOT_INODE
        for name in path.split("/"):
            inode = self._child(inode, name) or 0
            if not inode:
                return 0
        return inode

    def _child(self, inode: int, name: str) -> int | None:
        entry = self._namespace.peek(inode, os.fsencode(name))
        return entry.inode if entry is not None and entry.kind is Kind.DIRECTORY else None


class Manifests:
    """The manifests of one under-store: made, and taken up."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        flush: Callable[[], Awaitable[None]],
        source: str,
        source_id: str,
        nursery: trio.Nursery,
    ) -> None:
        """``flush``: brings the index to the disk. ``source``: the URL of the under-store, without secrets."""
        self.source = source
        self._nursery = nursery
        self._names = names
        self._export = partial(Export, namespace, names, source=source, source_id=source_id)
        self._import = partial(Import, namespace, names, flush, source=source, source_id=source_id)

    def export(self, file: str) -> Export:
        """Begin to write a manifest."""
        job = self._export(file=file)
        self._nursery.start_soon(job.run)
        return job

    async def at_mount(self, file: str, note: Callable[[str], None]) -> None:
        """Take one up before the tree is shown, as far as that goes in `PATIENCE_S`; the rest comes behind.

        One that was taken up before is not looked at again. ``note`` is told what the user is to know. Raises
        `ManifestRefused`.
        """
        job = self._import(file=file)
        try:
            which = await job.open()
            if which == self._names.manifest:
                job.close()
                return
            await job.check()
        except BaseException:
            job.close()
            raise
        self._nursery.start_soon(self._take_up, job, which)
        with trio.move_on_after(PATIENCE_S):
            await job.ended.wait()
        progress = job.progress()
        if not progress.done:
            note(f"{file}: {format_count(progress.entries, 'name')} taken up so far; the rest comes behind")
        elif progress.note is not None:
            note(progress.note)

    async def _take_up(self, job: Import, which: bytes) -> None:
        await job.run()
        try:
            progress = job.progress()
            self._names.note_manifest(which)
        except (LuxError, OSError) as exc:
            log.warning("the manifest was not taken up: %s", exc)
            return
        log.info(
            "%s in %d directories taken up of the manifest", format_count(progress.entries, "name"), progress.directories
        )

    def take_up(self, file: str) -> Import:
        """Begin to take one up."""
        job = self._import(file=file)
        self._nursery.start_soon(job.run)
        return job


def _some(parts: Iterator[Part]) -> list[Part]:
    """Return the next parts, of a bounded number of entries together."""
    found: list[Part] = []
    entries = 0
    while entries < PART_ENTRIES and len(found) < PARTS_AT_ONCE and (part := next(parts, None)) is not None:
        found.append(part)
        entries += len(part.items)
    return found
