"""Replicas of promised files: other nodes hold them until the under-store has them."""

from __future__ import annotations

import logging

import msgspec

from luxfuse.cache.staged import Stamp
from luxfuse.errors import NotReplicated
from luxfuse.index.entries import Attributes
from luxfuse.index.journal import Journal
from luxfuse.types import Kind, WriteMode
from luxfuse.vfs.attributes import to_metadata
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.replicator import Replicator
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)


class PromisedReplicas:
    """The replicas of the dirty files of one mount."""

    def __init__(self, *, notes: Notes, journal: Journal, writeback: WriteBack, replicator: Replicator | None) -> None:
        """``replicator``: has other nodes hold what was promised until the store has it."""
        self._notes = notes
        self._journal = journal
        self._writeback = writeback
        self._replicator = replicator

    def wanted(self, dirty: Dirty) -> bool:
        """Whether other nodes are to hold the content before it is acknowledged."""
        wanted = self._replicator is not None and self._replicator.copies > 0
        return wanted and dirty.kind is Kind.FILE and dirty.mode == WriteMode.ASYNC_THROUGH and dirty.source is not None

    def plan(self, dirty: Dirty) -> None:
        """Give the content that is about to be promised a generation, and choose its holders: the journal notes them."""
        assert self._replicator is not None
        dirty.replicas.promise(self._replicator.plan(dirty.number, dirty.replicas.holders))

    async def hold(self, dirty: Dirty) -> bool:
        """Have other nodes hold what the journal has promised; False: they do not, so it has to go to the store now."""
        replication = self._replicator
        if replication is None or not self.wanted(dirty) or not dirty.must_push:
            return True  # there is nothing to be lost
        async with dirty.replicas.lock:
            if dirty.source is None or dirty.place is None or not dirty.must_push:
                return True
            if dirty.replicas.generation == 0:  # promised by a run without replicas
                self.plan(dirty)
                self._notes.note(dirty)
                await self._journal.commit()
            if dirty.replicas.have_all or dirty.source is None or dirty.place is None:
                return True
            content, stamp = dirty.content, dirty.noted
            if not content.complete or stamp is None:
                return False  # the store makes the better copy of what it has
            with content.in_use():
                try:
                    await self._send_replicas(replication, dirty, content.fd, stamp)
                except NotReplicated as exc:
                    log.info("%r goes to the under-store at once: %s", dirty.key, exc)
                    return False
        return True

    async def _send_replicas(self, replication: Replicator, dirty: Dirty, fd: int, stamp: Stamp) -> None:
        """Have enough nodes hold the content that has ``stamp``; ``fd`` -1: if they do. Raises `NotReplicated`."""
        generation, key = dirty.replicas.generation, dirty.key
        attributes = msgspec.structs.replace(self._notes.entry(dirty).attributes or Attributes(), mtime_ns=stamp.mtime_ns)
        same = dirty.replicas.replicated if dirty.replicas.stamp == stamp else 0
        planned = dirty.replicas.holders[: replication.copies]
        took = await replication.replicate(
            replication.write(dirty.number, generation),
            key,
            to_metadata(Kind.FILE, attributes),
            dirty.stored.expect,
            planned,
            fd,
            stamp.size,
            same,
        )
        others = dirty.replicas.took(took, generation, stamp)
        if dirty.place is None:
            replication.release(dirty.number, generation, dirty.replicas.holders, removed=True)
        elif not dirty.must_push:
            replication.release(dirty.number, generation, dirty.replicas.holders)
        else:
            replication.release(dirty.number, generation, others)  # not before enough have what comes after
            self._notes.note(dirty)

    def removed(self, dirty: Dirty) -> None:
        """A file is removed: let its holders drop it, soon."""
        if self._replicator is not None and dirty.replicas.holders:
            self._replicator.release(dirty.number, dirty.replicas.generation, dirty.replicas.holders, removed=True)

    async def tell_holders(self) -> None:
        """Tell the holders of replicas which files have another name now, or none: before that is acknowledged."""
        replication = self._replicator
        if replication is None:
            return
        await replication.retract()
        for dirty in list(self._notes.misled):  # those of other tasks, too: the second one waits for the first
            if dirty.place is None or dirty.source is None or not dirty.must_push or not dirty.replicas.replicated:
                pass
            elif not self.wanted(dirty):
                replication.release(dirty.number, dirty.replicas.generation, dirty.replicas.holders, removed=True)
            elif not await self._rename_replicas(replication, dirty) and not dirty.writers:
                await self._writeback.push(dirty)
            self._notes.misled.discard(dirty)

    async def _rename_replicas(self, replication: Replicator, dirty: Dirty) -> bool:
        """Tell the holders of a file its new key. False: they do not hold it any more."""
        async with dirty.replicas.lock:
            stamp = dirty.replicas.stamp
            if stamp is None or dirty.replicas.have_all or dirty.source is None or dirty.place is None:
                return True
            content = dirty.source.bytes
            # A file that is being written to is not what they hold: their content stays promised, under the new key.
            fd = content.fd if not dirty.content_changed(stamp) else -1
            with content.in_use():
                try:
                    await self._send_replicas(replication, dirty, fd, stamp)
                except NotReplicated as exc:
                    log.info("%r goes to the under-store at once: %s", dirty.key, exc)
                    return False
        return True
