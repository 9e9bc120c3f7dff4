"""The parts of multipart uploads: sending them, also while their file is still being written, and giving them up."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import trio

from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.checksums import read_checked
from luxfuse.cache.open_uploads import OpenUpload
from luxfuse.cache.together import together
from luxfuse.cache.upload_source import Cancelled, Source
from luxfuse.core.parts import MOST_PARTS, PART_BYTES, Part
from luxfuse.errors import NotFound, StoreError
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

BUFFERS_KEPT = 4
EARLY_POLL_S = 0.02
EARLY_POLL_MOST_S = 0.5
"""How long nothing is looked at again, at most, when nothing new was found."""


class PartUploads:
    """Parts on their way to the store, bounded together."""

    def __init__(
        self, store: Store, journal: Journal, budget: ByteBudget, max_uploads: int, readers: trio.CapacityLimiter
    ) -> None:
        """``budget``, ``max_uploads``: as for `Uploader`; ``readers`` bounds the threads that read files."""
        self._store = store
        self._journal = journal
        self._budget = budget
        self._slots = trio.CapacityLimiter(max_uploads)
        self._readers = readers
        self._buffers: list[bytearray] = []

    async def send(self, source: Source, upload: OpenUpload, parts: list[Part], sums: dict[int, int]) -> None:
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
                    await self._store.turn("put", source.key, part.end - part.start)
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
            tag = await self._store.copy_part(key, upload.upload, part.number, old.key, old.version, part.start, part.end)
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
                tag = await self._store.upload_part(key, upload.upload, part.number, data, once=once)
                # Only after success: a request that ran into its deadline may still be sending.
                if len(buffer) == PART_BYTES and len(self._buffers) < BUFFERS_KEPT:
                    self._buffers.append(buffer)
        upload.checksums.update(found)
        upload.arrived(part, tag, "")
        sums.update(found)

    # -- while the file is still being written

    async def send_early(self, source: Source, metadata: Mapping[str, str], part_bytes: int) -> None:
        """Begin a multipart upload and send what will probably not change any more, until `upload` stops this.

        What did change by then is noticed by its checksum and sent again. When a part fails no more are begun, but
        those that are on their way may arrive.
        """
        early = source.open = OpenUpload(source.key, "", metadata, part_bytes, noted_s=trio.current_time())
        try:
            early.upload = await self._store.begin_upload(source.key, metadata, keep=source.keep)
            self._journal.uploads.begun(source.key, early.upload, metadata)
            await self._journal.commit()
            async with together() as start:
                pause_s = EARLY_POLL_S
                while not early.stopped and not source.cancelled and not source.bytes.closed:
                    before = early.begun
                    while await self._is_ready(source, early):
                        part = Part(early.begun + 1, early.begun * part_bytes, (early.begun + 1) * part_bytes, False)
                        slot = object()
                        await self._store.turn("put", source.key, part_bytes)
                        await self._slots.acquire_on_behalf_of(slot)
                        if early.stopped:
                            self._slots.release_on_behalf_of(slot)
                            break
                        early.begun += 1
                        start(self._send_early_part, source, early, part, slot)
                    pause_s = EARLY_POLL_S if early.begun > before else min(2 * pause_s, EARLY_POLL_MOST_S)
                    with trio.move_on_after(pause_s):
                        await early.stopping.wait()
        except (StoreError, OSError) as exc:
            log.info("sending %r while it is written stopped: %s", source.key, exc)
        finally:
            early.running.set()

    @staticmethod
    async def _is_ready(source: Source, early: OpenUpload) -> bool:
        """Whether the next part will probably not change: it and the one after it are written."""
        start, end = early.begun * early.part_bytes, (early.begun + 2) * early.part_bytes
        if early.stopped or source.bytes.closed or end > source.bytes.size or early.begun >= MOST_PARTS:
            return False
        return await source.bytes.is_written(start, end) and not early.stopped

    async def _send_early_part(self, source: Source, early: OpenUpload, part: Part, slot: object) -> None:
        try:
            await self._send_part(source, early, part, {})
            reached("upload.early-part")
        except StoreError as exc:
            log.info("sending %r while it is written stopped: %s", source.key, exc)
            early.stopping.set()
        finally:
            self._slots.release_on_behalf_of(slot)

    # -- giving up

    async def give_up_open(self, source: Source) -> None:
        """Make no use of the parts that have arrived: abort the upload."""
        upload, source.open = source.open, None
        if upload is not None:
            upload.stopping.set()
            await upload.running.wait()
            if upload.upload:
                await self.abort(upload.key, upload.upload)

    async def abort(self, key: str, upload: str) -> None:
        """Give an upload up; if the store cannot be told now, the journal keeps it for the next mount."""
        try:
            await self._store.abort_upload(key, upload)
        except NotFound:
            pass
        except StoreError as exc:
            log.info("an upload of %r could not be aborted yet: %s", key, exc)
            return
        self._journal.uploads.over(key, upload)
