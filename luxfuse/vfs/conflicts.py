"""Files that are not to replace what somebody else has written meanwhile (``--on-conflict fail``).

A program that closes or syncs such a file gets ESTALE (`Conflict`). When nobody has it open for writing any more, its
content is kept in the recovered directory, and the name shows what the store has.
"""

from __future__ import annotations

import logging

import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.cache.staged import StagedBytes
from luxfuse.errors import LuxError, StoreError
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.removing import Removing

log = logging.getLogger(__name__)


class Conflicts:
    """Sets the losing files of one mount aside."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        removing: Removing,
        notes: Notes,
        publisher: Publisher,
        journal: Journal,
        staging: Staging,
        recovered: Recovered,
        nursery: trio.Nursery,
    ) -> None:
        self._namespace = namespace
        self._removing = removing
        self._notes = notes
        self._publisher = publisher
        self._journal = journal
        self._staging = staging
        self._recovered = recovered
        self._nursery = nursery
        publisher.on_conflict(self.begin)

    def begin(self, dirty: Dirty) -> None:
        """Set a file aside that nobody has open for writing."""
        self._nursery.start_soon(self._quietly, dirty)

    async def _quietly(self, dirty: Dirty) -> None:
        try:
            await self._set_aside(dirty)
        except Exception:
            log.exception("%r cannot be set aside; its content stays in the staging directory", dirty.key)

    async def _set_aside(self, dirty: Dirty) -> None:
        key = dirty.key
        async with dirty.lock:
            if dirty.finished or dirty.writers or dirty.place is None:
                return
            if dirty.source is None:
                await self._set_link_aside(dirty, *dirty.place)
            else:
                await self._set_file_aside(dirty, dirty.source.bytes)
        if dirty.place is not None:
            return  # its next close comes here again
        self._publisher.discard_if_unused(dirty)
        try:
            await self._namespace.refresh(key)
        except LuxError as exc:
            log.info("%r is looked up when it is used: %s", key, exc)

    async def _set_file_aside(self, dirty: Dirty, content: StagedBytes) -> None:
        """Take a file out and keep its content, unless it is opened for writing meanwhile."""
        try:
            await content.complete_all()
        except (StoreError, OSError) as exc:
            log.warning("%r: what was not changed of it cannot be fetched any more: %s", dirty.key, exc)
        if dirty.writers or dirty.place is None:
            return
        # Should we be killed from now on, the next run keeps it, and neither uploads it nor calls it lost.
        dirty.withdraw()
        self._notes.note(dirty)
        await self._journal.commit()
        reached("conflict.noted")
        if dirty.writers or dirty.place is None:
            return
        await self._take_out(dirty, *dirty.place)

    async def _set_link_aside(self, dirty: Dirty, parent: int, name: bytes) -> None:
        """Keep the target of a symlink, then take that out: a restart in between would do it again."""
        kept = await trio.to_thread.run_sync(self._recovered.keep_bytes, dirty.target, dirty.key)
        if dirty.place == (parent, name):
            self._removing.forget(parent, name, self._notes.entry(dirty))
            self._namespace.settle(None, parent, name)
        log.warning("%r was written by somebody else meanwhile; our version is kept as %s", dirty.key, kept)

    async def _take_out(self, dirty: Dirty, parent: int, name: bytes) -> None:
        entry = self._notes.entry(dirty)
        self._removing.forget(parent, name, entry)
        self._namespace.settle(None, parent, name)
        kept = await trio.to_thread.run_sync(self._recovered.keep_staging, self._staging, dirty.number, dirty.key)
        reached("conflict.kept")
        self._journal.drop_file(dirty.number)
        log.warning("%r was written by somebody else meanwhile; our version is kept as %s", dirty.key, kept)
