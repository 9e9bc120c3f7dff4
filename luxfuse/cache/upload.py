"""Bringing a staging file to the under-store: in one request, or in parts that go up in parallel.

Small changes to a large object are cheap where the store can copy parts: pages whose checksum is still that of the old
object, and pages that were never fetched, are copied inside the store. What goes up is checksummed on the way, so the
checksums returned belong to the bytes that the store has, whatever programs write meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import trio

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.disk import checksum
from luxfuse.cache.open_uploads import OpenUpload
from luxfuse.cache.staged import StagedBytes, Stamp, stamp_of
from luxfuse.cache.together import together
from luxfuse.core.parts import MOST_PARTS, PART_BYTES, SINGLE_BYTES, Part, plan_parts
from luxfuse.core.replicas import WRITE_METADATA
from luxfuse.errors import NotFound, StoreError, StoreRejected, VersionChanged
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.types import PAGE_BYTES, ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.properties import Properties
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

HASH_RUN_BYTES = 8 << 20
BUFFERS_KEPT = 4
EARLY_POLL_S = 0.02
LOST_PARTS = ("InvalidPart", "InvalidPartOrder")
"""What a store says at the end that does not have the parts any more: then they have to go up again."""


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
    """What is to go up. ``old`` is what a part may be copied from; ``cancelled`` ends the upload soon.

    ``open`` is an upload that began while the file was written, or failed: what has arrived of it is not sent again.
    ``retrying``: it failed lately: try with one request before all the others. ``keep``: what others set on the object
    that is replaced, but its metadata.
    """

    key: str
    bytes: StagedBytes
    old: OldObject | None = None
    open: OpenUpload | None = None
    cancelled: bool = False
    retrying: bool = False
    keep: Properties | None = None


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The outcome: the store's word on the object, the checksum of each page that the staging file has, its stamp.

    ``metadata``: what the object has, where the upload was begun before it was asked for; None: what was asked for.
    """

    info: ObjectInfo
    checksums: dict[int, int]
    stamp: Stamp
    metadata: Mapping[str, str] | None = None


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
        if stamp.size <= SINGLE_BYTES:
            await self.give_up_open(source)
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
            return driver.put(key, data, metadata, expect=expect, keep=source.keep), sums

        with source.bytes.in_use():
            await self.store.turn("put", key, stamp.size)
            async with self._budget.hold(stamp.size):
                with self.store.changing(key):
                    info, sums = await self.store.call(
                        "put",
                        put,
                        what=f"PUT {key!r}",
                        patience=1 + stamp.size / (8 << 20),
                        size_bytes=stamp.size,
                        key=key,
                        once=source.retrying,
                    )
        self.store.note_stored(key, stamp.size)
        return Uploaded(info, sums, stamp)

    async def _put_file(self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp) -> Uploaded:
        sums = await self.checksums(source.bytes, stamp.size)
        info = await self.store.put_file(source.key, str(source.bytes.path), metadata, expect=expect, keep=source.keep)
        return Uploaded(info, sums, stamp)

    async def checksums(self, data: StagedBytes, size: int) -> dict[int, int]:
        """Checksum the pages that the staging file has."""
        return await self._checksums(data, [(0, size)])

    async def _checksums(self, data: StagedBytes, spans: Iterable[tuple[int, int]]) -> dict[int, int]:
        sums: dict[int, int] = {}

        async def run(first: int, end: int) -> None:
            length = min(HASH_RUN_BYTES, end - first)
            async with self._readers:
                found = await trio.to_thread.run_sync(page_checksums, data.fd, first, length)
            sums.update({page: value for page, value in found.items() if data.has(page)})

        with data.in_use():
            async with together() as start:
                for begin, end in spans:
                    for first in range(begin, end, HASH_RUN_BYTES):
                        start(run, first, end)
        return sums

    # -- in parts

    async def _in_parts(self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp) -> Uploaded:
        upload = await self._usable(source, metadata, stamp.size)
        sums: dict[int, int] = {}
        if upload is not None and upload.part_bytes:
            parts = _parts_of_size(stamp.size, upload.part_bytes)
        else:
            parts, sums = await self._plan(source, stamp.size)
        upload = upload or await self._begin(source, metadata)
        source.open = upload
        try:
            tags = await self._send_all(source, upload, parts, sums)
            reached("upload.parts")
            source.bytes.expect_replacement()
            info = await self.store.complete_upload(source.key, upload.upload, sorted(tags.items()), expect=expect)
        except (NotFound, Cancelled):  # not found: the upload, or what is to be copied from
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await self.give_up_open(source)
            raise
        except StoreRejected as exc:
            if exc.code in LOST_PARTS:
                await self.give_up_open(source)
            upload.note(self._journal)
            raise
        except BaseException:
            upload.note(self._journal)
            raise
        reached("upload.completed")
        source.open = None
        self._journal.drop_upload(source.key, upload.upload)
        return Uploaded(info, sums, stamp, upload.metadata)

    async def _begin(self, source: Source, metadata: Mapping[str, str]) -> OpenUpload:
        key = source.key
        identity = await self.store.begin_upload(key, metadata, keep=source.keep)
        upload = OpenUpload(key, identity, metadata, noted_s=trio.current_time())
        upload.running.set()
        reached("upload.begun")
        self._journal.note_upload(key, upload.upload, metadata)
        await self._journal.commit()  # before there is anything in it that takes room
        reached("upload.noted")
        return upload

    async def _usable(self, source: Source, metadata: Mapping[str, str], size: int) -> OpenUpload | None:
        """Let no further part go up early; returns the open upload if an object of ``size`` bytes can be made of it."""
        upload = source.open
        if upload is None:
            return None
        upload.stopped = True
        if not upload.tags:  # it has just begun, or fails
            await upload.running.wait()
        same_write = upload.metadata.get(WRITE_METADATA) == metadata.get(WRITE_METADATA)
        if upload.key == source.key and upload.upload and upload.fits(size) and same_write:
            return upload
        await self.give_up_open(source)
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

    async def _send_all(
        self, source: Source, upload: OpenUpload, parts: list[Part], sums: dict[int, int]
    ) -> dict[int, str]:
        """Send what has not arrived, and again what has changed since; returns tags. ``sums`` gets all checksums."""
        version = source.old.version if source.old is not None else ""
        early = max(upload.begun, 0) if not upload.running.is_set() else 0  # these are there, or on their way
        there = [part for part in parts if part.number <= early or upload.has(part, version if part.copied else "")]

        async def check() -> None:
            spans = [(part.start, part.end) for part in there if not part.copied]
            sums.update(await self._checksums(source.bytes, spans))
            await upload.running.wait()

        async with together() as start:
            start(check)
            await self._send(source, upload, [part for part in parts if part not in there], sums)
        again = [
            part for part in there
            if not upload.has(part, version if part.copied else "") or not upload.is_same(part, sums)
        ]  # fmt: skip
        await self._send(source, upload, again, sums)
        return {part.number: upload.tags[part.number] for part in parts}

    async def _send(self, source: Source, upload: OpenUpload, parts: list[Part], sums: dict[int, int]) -> None:
        """Send parts. When one fails no more are begun, but those that are on their way may arrive."""
        failed: list[StoreError] = []

        async def send(part: Part, *, once: bool = False) -> None:
            async with self._slots:
                if failed:
                    return
                try:
                    if source.cancelled:
                        raise Cancelled(f"{source.key!r} is not wanted any more")
                    await self._send_part(source, upload, part, sums, once=once)
                except StoreError as exc:
                    failed.append(exc)
                    return
                upload.note_now_and_then(self._journal)
                reached("upload.part")

        async with together() as start:
            for number, part in enumerate(parts):
                if failed:
                    break
                if not part.copied:
                    await self.store.turn("put", source.key, part.end - part.start)
                if source.retrying and number == 0:
                    await send(part, once=True)
                    source.retrying = False
                else:
                    start(send, part)
        if failed:
            raise failed[0]

    async def _send_part(
        self, source: Source, upload: OpenUpload, part: Part, sums: dict[int, int], *, once: bool = False
    ) -> None:
        key = upload.key
        if part.copied:
            old = source.old
            assert old is not None
            tag = await self.store.copy_part(key, upload.upload, part.number, old.key, old.version, part.start, part.end)
            upload.arrived(part, tag, old.version)
            return
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
                tag = await self.store.upload_part(key, upload.upload, part.number, data, once=once)
                # Only after success: a request that ran into its deadline may still be sending.
                if len(buffer) == PART_BYTES and len(self._buffers) < BUFFERS_KEPT:
                    self._buffers.append(buffer)
        upload.checksums.update(found)
        upload.arrived(part, tag, "")
        sums.update(found)

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
        early = source.open = OpenUpload(source.key, "", metadata, part_bytes, noted_s=trio.current_time())
        try:
            early.upload = await self.store.begin_upload(source.key, metadata, keep=source.keep)
            self._journal.note_upload(source.key, early.upload, metadata)
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

    async def give_up_open(self, source: Source) -> None:
        """Make no use of what has arrived of the file: abort the upload."""
        upload, source.open = source.open, None
        if upload is not None:
            upload.stopped = True
            await upload.running.wait()
            if upload.upload:
                await self.abort(upload.key, upload.upload)

    async def _send_early_part(self, source: Source, early: OpenUpload, part: Part, slot: object) -> None:
        try:
            await self._send_part(source, early, part, {})
            reached("upload.early-part")
        finally:
            self._slots.release_on_behalf_of(slot)


def _parts_of_size(size: int, part_bytes: int) -> list[Part]:
    return [
        Part(number, start, min(start + part_bytes, size), False)
        for number, start in enumerate(range(0, size, part_bytes), 1)
    ]


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
