"""Bringing a staging file to the under-store: in one request, or in parts that go up in parallel.

Small changes to a large object are cheap where the store can copy parts: pages whose checksum is still that of the old
object, and pages that were never fetched, are copied inside the store. What goes up is checksummed on the way, so the
checksums returned belong to the bytes that the store has, whatever programs write meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.disk import checksum
from luxfuse.cache.staged import StagedBytes, Stamp, stamp_of
from luxfuse.cache.together import together
from luxfuse.core.parts import MOST_PARTS, PART_BYTES, SINGLE_BYTES, Part, plan_parts
from luxfuse.errors import NotFound, StoreError, VersionChanged
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.types import PAGE_BYTES, ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

HASH_RUN_BYTES = 8 << 20
BUFFERS_KEPT = 4
EARLY_POLL_S = 0.02


class ChangedMeanwhile(StoreError):
    """The file got shorter while it was read: try again with what it is now."""


class Cancelled(StoreError):
    """Nobody wants the upload any more."""


@dataclass(frozen=True, slots=True)
class OldObject:
    """What the store holds already of the file: its key, version, size in bytes, and the checksums known of its pages."""

    key: str
    version: str
    size: int
    checksums: Mapping[int, int]


@dataclass(slots=True)
class Source:
    """What is to go up. ``old`` is what a part may be copied from; ``cancelled`` ends the upload soon."""

    key: str
    bytes: StagedBytes
    path: str
    old: OldObject | None = None
    early: EarlyParts | None = None
    cancelled: bool = False


@dataclass(slots=True)
class EarlyParts:
    """A multipart upload that began while the file was still being written: its parts with their checksums."""

    key: str
    upload: str
    metadata: Mapping[str, str]
    part_bytes: int
    tags: dict[int, str] = field(default_factory=dict)
    checksums: dict[int, int] = field(default_factory=dict)
    begun: int = 0
    """Parts that went up or are on their way."""
    stopped: bool = False
    running: trio.Event = field(default_factory=trio.Event)

    def fits(self, size: int) -> bool:
        """Whether a file of ``size`` bytes can be made of such parts."""
        return size <= self.part_bytes * MOST_PARTS


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The outcome: the store's word on the object, the checksum of each page that the staging file has, its stamp."""

    info: ObjectInfo
    checksums: dict[int, int]
    stamp: Stamp


def read_checked(fd: int, start: int, view: memoryview) -> dict[int, int]:
    """Fill ``view`` from a page's start on and checksum its pages. Raises `ChangedMeanwhile` if the file is too short."""
    sums = {}
    for offset in range(0, len(view), PAGE_BYTES):
        page = view[offset : offset + PAGE_BYTES]
        read_into(fd, page, start + offset)
        sums[(start + offset) // PAGE_BYTES] = checksum(page)
    return sums


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill ``view`` from ``offset`` on. Raises `ChangedMeanwhile` if the file is too short."""
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise ChangedMeanwhile("the file changed while it was read")
        view, offset = view[count:], offset + count


class _PageBuffer(threading.local):
    """A page for each thread: fresh memory is dear on virtual machines."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(PAGE_BYTES))


_page_buffer = _PageBuffer()


def page_checksums(fd: int, start: int, length: int) -> dict[int, int]:
    """Return the checksums of the pages from ``start`` on, by page number. Raises `ChangedMeanwhile`."""
    sums: dict[int, int] = {}
    for offset in range(start, start + length, PAGE_BYTES):
        sums |= read_checked(fd, offset, _page_buffer.view[: min(PAGE_BYTES, start + length - offset)])
    return sums


class Uploader:
    """Uploads of one mount, bounded together."""

    def __init__(self, *, store: Store, journal: Journal, budget: ByteBudget, max_uploads: int) -> None:
        """``budget`` bounds the bytes of parts in memory, ``max_uploads`` the parts on their way at once."""
        self.store = store
        self._journal = journal
        self._budget = budget
        self._slots = trio.CapacityLimiter(max_uploads)
        self._readers = trio.CapacityLimiter(max_uploads)
        self._buffers: list[bytearray] = []

    async def upload(self, source: Source, metadata: Mapping[str, str], expect: str | None) -> Uploaded:
        """Make the object be what the file is. Raises `VersionChanged` if the store holds another one than ``expect``."""
        stamp = stamp_of(source.bytes.fd)
        able = self.store.abilities
        if stamp.size <= SINGLE_BYTES and source.early is None:
            await source.bytes.complete_all()
            return await self._put(source, metadata, expect, stamp)
        if not able.multipart:
            await source.bytes.complete_all()
            return await self._put_file(source, metadata, expect, stamp)
        return await self._in_parts(source, metadata, expect, stamp)

    async def _put(self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp) -> Uploaded:
        fd, key = source.bytes.fd, source.key

        def put(driver: UnderStore) -> tuple[ObjectInfo, dict[int, int]]:
            data = memoryview(bytearray(stamp.size))
            sums = read_checked(fd, 0, data)
            return driver.put(key, data, metadata, expect=expect), sums

        with source.bytes.in_use():
            await self.store.turn("put", key, stamp.size)
            async with self._budget.hold(stamp.size):
                with self.store.changing(key):
                    info, sums = await self.store.call(
                        "put", put, what=f"PUT {key!r}", patience=1 + stamp.size / (8 << 20), size_bytes=stamp.size, key=key
                    )
        self.store.note_stored(key, stamp.size)
        return Uploaded(info, sums, stamp)

    async def _put_file(
        self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp
    ) -> Uploaded:
        sums = await self.checksums(source.bytes, stamp.size)
        info = await self.store.put_file(source.key, source.path, metadata, expect=expect)
        return Uploaded(info, sums, stamp)

    async def checksums(self, data: StagedBytes, size: int) -> dict[int, int]:
        """Checksum the pages that the staging file has."""
        sums: dict[int, int] = {}

        async def run(first: int) -> None:
            length = min(HASH_RUN_BYTES, size - first)
            async with self._readers:
                found = await trio.to_thread.run_sync(page_checksums, data.fd, first, length)
            sums.update({page: value for page, value in found.items() if data.has(page)})

        with data.in_use():
            async with together() as start:
                for first in range(0, size, HASH_RUN_BYTES):
                    start(run, first)
        return sums

    # -- in parts

    async def _in_parts(
        self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp
    ) -> Uploaded:
        early = await self._usable_early(source, stamp.size)
        if early is not None:
            upload = early.upload
        else:
            parts, sums = await self._plan(source, stamp.size)
            upload = await self.store.begin_upload(source.key, metadata)
            reached("upload.begun")
            self._journal.note_upload(source.key, upload)
            await self._journal.commit()  # before there is anything in it that takes room
            reached("upload.noted")
        try:
            if early is not None:
                tags, sums = await self._send_rest(source, early, stamp.size)
            else:
                tags = await self._send(source, upload, parts, sums)
            reached("upload.parts")
            source.bytes.expect_replacement()
            info = await self.store.complete_upload(source.key, upload, sorted(tags.items()), expect=expect)
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                if early is not None:
                    await early.running.wait()
                await self.abort(source.key, upload)
            raise
        reached("upload.completed")
        self._journal.drop_upload(source.key, upload)
        return Uploaded(info, sums, stamp)

    async def _usable_early(self, source: Source, size: int) -> EarlyParts | None:
        """Let no further part go up early; returns those that did if an object of ``size`` bytes can be made of them."""
        early, source.early = source.early, None
        if early is None:
            return None
        early.stopped = True
        if not early.tags:  # it has just begun, or fails
            await early.running.wait()
        if early.key == source.key and early.tags and early.fits(size):
            return early
        await early.running.wait()
        if early.upload:
            await self.abort(early.key, early.upload)
        return None

    async def _plan(self, source: Source, size: int) -> tuple[list[Part], dict[int, int]]:
        old, data = source.old, source.bytes
        if old is None or not self.store.abilities.part_copy:
            await data.complete_all()
            return plan_parts(size, lambda _page: False, can_copy=False), {}
        sums = await self.checksums(data, size)

        def unchanged(page: int) -> bool:
            end = min((page + 1) * PAGE_BYTES, size)
            if end > old.size or (end < (page + 1) * PAGE_BYTES and old.size != size):
                return False
            if not data.has(page):
                return end <= data.base_bytes
            return page in sums and sums[page] == old.checksums.get(page)

        parts = plan_parts(size, unchanged, can_copy=True)
        for part in parts:
            if not part.copied:
                await data.fill(range(part.start // PAGE_BYTES, -(-min(part.end, data.base_bytes) // PAGE_BYTES)))
        return parts, sums

    async def _send_rest(self, source: Source, early: EarlyParts, size: int) -> tuple[dict[int, str], dict[int, int]]:
        """Send what has not gone up early, and again what has changed since; returns tags and checksums."""
        parts = _parts_of_size(size, early.part_bytes)
        begun = early.begun
        sums: dict[int, int] = {}

        async def check() -> None:
            sums.update(await self.checksums(source.bytes, min(size, begun * early.part_bytes)))
            await early.running.wait()

        async with together() as start:
            start(check)
            tags = await self._send(source, early.upload, parts[begun:], sums)
        changed = [part for part in parts[:begun] if not _is_there(early, part, sums)]
        tags |= {part.number: early.tags[part.number] for part in parts[:begun] if part not in changed}
        tags |= await self._send(source, early.upload, changed, sums)
        return tags, sums

    async def _send(
        self, source: Source, upload: str, parts: list[Part], sums: dict[int, int]
    ) -> dict[int, str]:
        tags: dict[int, str] = {}

        async def send(part: Part) -> None:
            async with self._slots:
                if source.cancelled:
                    raise Cancelled(f"{source.key!r} is not wanted any more")
                tags[part.number] = await self._send_part(source, upload, part, sums)
                reached("upload.part")

        async with together() as start:
            for part in parts:
                if not part.copied:
                    await self.store.turn("put", source.key, part.end - part.start)
                start(send, part)
        return tags

    async def _send_part(self, source: Source, upload: str, part: Part, sums: dict[int, int]) -> str:
        if part.copied:
            old = source.old
            assert old is not None
            return await self.store.copy_part(
                source.key, upload, part.number, old.key, old.version, part.start, part.end
            )
        length = part.end - part.start
        with source.bytes.in_use():
            async with self._budget.hold(length):
                buffer = self._buffers.pop() if self._buffers else bytearray(PART_BYTES)
                if length > len(buffer):
                    buffer = bytearray(length)
                data = memoryview(buffer)[:length]
                found = await trio.to_thread.run_sync(
                    read_checked, source.bytes.fd, part.start, data, limiter=self._readers
                )
                tag = await self.store.upload_part(source.key, upload, part.number, data)
                # Only after success: a request that ran into its deadline may still be sending.
                if len(buffer) == PART_BYTES and len(self._buffers) < BUFFERS_KEPT:
                    self._buffers.append(buffer)
        sums.update(found)
        return tag

    async def abort(self, key: str, upload: str) -> None:
        """Give an upload up; if the store cannot be told now, the journal keeps it for the next mount."""
        try:
            await self.store.abort_upload(key, upload)
        except NotFound:
            pass
        except StoreError as exc:
            log.info("an upload of %r could not be aborted yet: %s", key, exc)
            return
        self._journal.drop_upload(key, upload)

    # -- while the file is still being written

    async def send_early(self, source: Source, metadata: Mapping[str, str], part_bytes: int) -> None:
        """Begin a multipart upload and send what will probably not change any more, until `upload` stops this.

        What did change by then is noticed by its checksum and sent again.
        """
        early = source.early = EarlyParts(source.key, "", metadata, part_bytes)
        try:
            early.upload = await self.store.begin_upload(source.key, metadata)
            self._journal.note_upload(source.key, early.upload)
            await self._journal.commit()
            async with together() as start:
                number = 0
                while not early.stopped and not source.cancelled and not source.bytes.closed:
                    size = source.bytes.size
                    while (number + 2) * part_bytes <= size and number < MOST_PARTS and not early.stopped:
                        part = Part(number + 1, number * part_bytes, (number + 1) * part_bytes, False)
                        slot = object()
                        await self.store.turn("put", source.key, part_bytes)
                        await self._slots.acquire_on_behalf_of(slot)
                        if early.stopped:
                            self._slots.release_on_behalf_of(slot)
                            break
                        start(self._send_early_part, source, early, part, slot)
                        number = early.begun = number + 1
                    await trio.sleep(EARLY_POLL_S)
        except StoreError as exc:
            log.info("sending %r while it is written stopped: %s", source.key, exc)
        finally:
            early.running.set()

    async def give_up_early(self, source: Source) -> None:
        """Nobody wants the file any more: abort what went up of it while it was written."""
        early, source.early = source.early, None
        if early is not None:
            early.stopped = True
            await early.running.wait()
            if early.upload:
                await self.abort(early.key, early.upload)

    async def _send_early_part(self, source: Source, early: EarlyParts, part: Part, slot: object) -> None:
        try:
            sums: dict[int, int] = {}
            early.tags[part.number] = await self._send_part(source, early.upload, part, sums)
            reached("upload.early-part")
            early.checksums.update(sums)
        finally:
            self._slots.release_on_behalf_of(slot)


def _parts_of_size(size: int, part_bytes: int) -> list[Part]:
    return [
        Part(number, start, min(start + part_bytes, size), False)
        for number, start in enumerate(range(0, size, part_bytes), 1)
    ]


def _is_there(early: EarlyParts, part: Part, sums: Mapping[int, int]) -> bool:
    """Whether a part went up early, whole, and its bytes are still the same."""
    if part.number not in early.tags or part.end - part.start != early.part_bytes:
        return False
    pages = range(part.start // PAGE_BYTES, -(-part.end // PAGE_BYTES))
    return all(early.checksums.get(page) == sums.get(page) for page in pages)


async def has_same_content(store: Store, info: ObjectInfo, checksums: Mapping[int, int], size: int) -> bool:
    """Whether the store's object has the pages of ``checksums``: an upload whose answer got lost, or equal content.

    Where pages are missing, as they were never fetched, those that were changed tell enough.
    """
    if info.size != size or (size and not checksums):
        return False
    try:
        for page in sorted(checksums):
            end = min((page + 1) * PAGE_BYTES, size)
            data = await store.read(info.key, page * PAGE_BYTES, end, info.version)
            if checksum(data) != checksums[page]:
                return False
    except (NotFound, VersionChanged):
        return False
    return True
