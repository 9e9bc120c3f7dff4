"""Uploads that begin while the file is still being written."""

from __future__ import annotations

import logging

import msgspec
import trio

from luxfuse.cache.upload import Uploader
from luxfuse.cache.upload_source import Source
from luxfuse.core.parts import PART_BYTES
from luxfuse.errors import StoreError
from luxfuse.index.entries import Attributes
from luxfuse.types import Kind
from luxfuse.vfs.attributes import to_metadata
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.keeping import foreign, keep
from luxfuse.vfs.notes import Notes

log = logging.getLogger(__name__)

CLOSELY_S = 1.0
LOOK_S = 0.02
"""A file that has just been opened is looked at so often for so long: a fast one is complete before the next tick."""

MOST_CLOSELY = 64

EARLY_BYTES = 4 * PART_BYTES
"""The upload of a file begins when it has grown to this size while it is written."""


class EarlyUploads:
    """The early uploads of one mount."""

    def __init__(self, *, uploader: Uploader, nursery: trio.Nursery, notes: Notes) -> None:
        self._uploader = uploader
        self._nursery = nursery
        self._notes = notes
        self._fresh: dict[Dirty, float] = {}
        """Files that are looked at closely, and until when."""

    def opened(self, dirty: Dirty) -> None:
        """A file was opened for writing: look at it closely for a moment."""
        if not self._may_begin(dirty) or len(self._fresh) >= MOST_CLOSELY:
            return
        if not self._fresh:
            self._nursery.start_soon(self._look_closely)
        self._fresh[dirty] = trio.current_time() + CLOSELY_S

    async def _look_closely(self) -> None:
        while self._fresh:
            await trio.sleep(LOOK_S)
            now_s = trio.current_time()
            for dirty, until_s in list(self._fresh.items()):
                if dirty.writers:
                    self.begin(dirty)
                if not dirty.writers or not self._may_begin(dirty) or now_s >= until_s:
                    del self._fresh[dirty]

    def _may_begin(self, dirty: Dirty) -> bool:
        """Whether a file would be sent if it were large enough."""
        source = dirty.source
        if source is None or source.open is not None or source.old is not None or dirty.sent_early:
            return False
        return dirty.mode.is_through and dirty.place is not None

    def begin(self, dirty: Dirty) -> None:
        """Begin to send a file that is being written, if it is large enough by now."""
        source = dirty.source
        if source is None or not self._may_begin(dirty):
            return
        if source.bytes.size < EARLY_BYTES or not self._uploader.store.abilities.multipart or dirty.lock.locked():
            return
        dirty.begin_early()
        known = msgspec.structs.replace(self._notes.entry(dirty).attributes or Attributes(), mtime_ns=None)
        self._nursery.start_soon(self._send, dirty, source, to_metadata(Kind.FILE, known))

    async def _send(self, dirty: Dirty, source: Source, metadata: dict[str, str]) -> None:
        if dirty.lock.locked() or dirty.place is None or dirty.source is not source:
            return  # it is uploaded whole already, or not at all
        try:
            source.keep = await keep(self._uploader.store, dirty)
            if dirty.lock.locked() or dirty.place is None or dirty.source is not source:
                return
            await self._uploader.parts.send_early(source, {**foreign(source.keep), **metadata}, PART_BYTES)
        except StoreError as exc:
            log.info("%r is not uploaded while it is written: %s", dirty.key, exc)
        except Exception:
            log.exception("sending %r while it is written failed in an unexpected way", dirty.key)
