"""Bringing a staging file to the under-store: in one request, or in parts that go up in parallel.

Small changes to a large object are cheap where the store can copy parts: pages whose checksum is still that of the old
object, and pages that were never fetched, are copied inside the store. What goes up is checksummed on the way, so the
checksums returned belong to the bytes that the store has, whatever programs write meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.checksums import checksums_of, read_checked
from luxfuse.cache.open_uploads import OpenUpload
from luxfuse.cache.part_uploads import PartUploads
from luxfuse.cache.staged import StagedBytes, Stamp, stamp_of
from luxfuse.cache.together import together
from luxfuse.cache.upload_source import Cancelled, Source, Uploaded
from luxfuse.core.parts import SINGLE_BYTES, Part, plan_parts
from luxfuse.core.replicas import WRITE_METADATA
from luxfuse.errors import NotFound, StoreRejected
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.types import PAGE_BYTES, ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.puts_together import Wanted
from luxfuse.understore.retrying import Store

LOST_PARTS = ("InvalidPart", "InvalidPartOrder")
"""The words of a store, at the end, that does not have the parts any more: then they have to go up again."""


class Uploader:
    """Uploads of one mount, bounded together."""

    def __init__(self, *, store: Store, journal: Journal, budget: ByteBudget, max_uploads: int) -> None:
        """``budget`` bounds the bytes of parts in memory, ``max_uploads`` the parts on their way at once."""
        self.store = store
        self._journal = journal
        self._budget = budget
        self._readers = trio.CapacityLimiter(max_uploads)
        self.parts = PartUploads(store, journal, budget, max_uploads, self._readers)

    async def upload(self, source: Source, metadata: Mapping[str, str], expect: str | None) -> Uploaded:
        """Make the object be what the file is. Raises `VersionChanged` if the store holds another one than ``expect``."""
        stamp = stamp_of(source.bytes.fd)
        if stamp.size <= SINGLE_BYTES:
            await self.parts.give_up_open(source)
            await source.bytes.complete_all()
            return await self._put(source, metadata, expect, stamp)
        if not (await self.store.known_abilities()).multipart:
            await source.bytes.complete_all()
            return await self._put_file(source, metadata, expect, stamp)
        return await self._in_parts(source, metadata, expect, stamp)

    async def _put(self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp) -> Uploaded:
        fd, key = source.bytes.fd, source.key

        def read() -> tuple[memoryview, dict[int, int]]:
            data = memoryview(bytearray(stamp.size))
            return data, read_checked(fd, 0, data)

        def put(driver: UnderStore) -> tuple[ObjectInfo, dict[int, int]]:
            data, sums = read()
            return driver.put(key, data, metadata, expect=expect, keep=source.keep), sums

        what, conditional, patience = f"PUT {key!r}", self.store.is_conditional(expect), 1 + stamp.size / (8 << 20)
        with source.bytes.in_use():
            await self.store.outlive([key], what, conditional=conditional, patience=patience)
            await self.store.turn("put", key, stamp.size)
            async with self._budget.hold(stamp.size):
                with self.store.changing(key):
                    info, sums = await self.store.call(
                        "put",
                        put,
                        what=what,
                        patience=patience,
                        size_bytes=stamp.size,
                        key=key,
                        once=source.retrying,
                        changes=[key],
                        conditional=conditional,
                        small=Wanted(key, stamp.size, read, metadata, expect) if source.keep is None else None,
                    )
        self.store.note_stored(key, stamp.size)
        return Uploaded(info, sums, stamp)

    async def _put_file(self, source: Source, metadata: Mapping[str, str], expect: str | None, stamp: Stamp) -> Uploaded:
        sums = await self.checksums(source.bytes, stamp.size)
        info = await self.store.put_file(source.key, source.bytes.path, metadata, expect=expect, keep=source.keep)
        return Uploaded(info, sums, stamp)

    async def checksums(self, data: StagedBytes, size: int) -> dict[int, int]:
        """Checksum the pages that the staging file has."""
        return await checksums_of(data, [(0, size)], self._readers)

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
                await self.parts.give_up_open(source)
            raise
        except StoreRejected as exc:
            if exc.code in LOST_PARTS:
                await self.parts.give_up_open(source)
            upload.note(self._journal)
            raise
        except BaseException:
            upload.note(self._journal)
            raise
        reached("upload.completed")
        source.open = None
        self._journal.uploads.over(source.key, upload.upload)
        return Uploaded(info, sums, stamp, upload.metadata)

    async def _begin(self, source: Source, metadata: Mapping[str, str]) -> OpenUpload:
        key = source.key
        identity = await self.store.begin_upload(key, metadata, keep=source.keep)
        upload = OpenUpload(key, identity, metadata, noted_s=trio.current_time())
        upload.running.set()
        reached("upload.begun")
        self._journal.uploads.begun(key, upload.upload, metadata)
        await self._journal.commit()  # before there is anything in it that takes room
        reached("upload.noted")
        return upload

    async def _usable(self, source: Source, metadata: Mapping[str, str], size: int) -> OpenUpload | None:
        """Let no further part go up early; returns the open upload if an object of ``size`` bytes can be made of it."""
        upload = source.open
        if upload is None:
            return None
        upload.stopping.set()
        if not upload.tags:  # it has just begun, or fails
            await upload.running.wait()
        same_write = upload.metadata.get(WRITE_METADATA) == metadata.get(WRITE_METADATA)
        if upload.key == source.key and upload.upload and upload.fits(size) and same_write:
            return upload
        await self.parts.give_up_open(source)
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
        """Send the parts that have not arrived, or have changed since; returns tags. ``sums`` gets all checksums."""
        version = source.old.version if source.old is not None else ""
        early = max(upload.begun, 0) if not upload.running.is_set() else 0  # these are there, or on their way
        there = [part for part in parts if part.number <= early or upload.has(part, version if part.copied else "")]

        async def check() -> None:
            spans = [(part.start, part.end) for part in there if not part.copied]
            sums.update(await checksums_of(source.bytes, spans, self._readers))
            await upload.running.wait()

        async with together() as start:
            start(check)
            await self.parts.send(source, upload, [part for part in parts if part not in there], sums)
        again = [
            part for part in there
            if not upload.has(part, version if part.copied else "") or not upload.is_same(part, sums)
        ]  # fmt: skip
        await self.parts.send(source, upload, again, sums)
        return {part.number: upload.tags[part.number] for part in parts}


def _parts_of_size(size: int, part_bytes: int) -> list[Part]:
    return [
        Part(number, start, min(start + part_bytes, size), False)
        for number, start in enumerate(range(0, size, part_bytes), 1)
    ]
