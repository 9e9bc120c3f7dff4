"""The promise of a close or an fsync: the content is in the under-store, or in the journal and on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

import msgspec
import trio

from luxfuse.cache.staged import StagedBytes, Stamp
from luxfuse.core.waits import SmallCloses
from luxfuse.errors import LuxError, Unforeseen
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, WriteMode
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.publishing import Publisher
from luxfuse.vfs.replicas import PromisedReplicas
from luxfuse.vfs.room import Room
from luxfuse.vfs.writeback import WriteBack
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

Done = Callable[[Exception | None], None]

INLINE_BYTES = 16 << 10
"""Content up to this size goes into the journal: one synchronous commit instead of two."""


class Promises:
    """The promises of one mount."""

    def __init__(
        self,
        *,
        staging: Staging,
        journal: Journal,
        writeback: WriteBack,
        nursery: trio.Nursery,
        notes: Notes,
        room: Room,
        replicas: PromisedReplicas,
        publisher: Publisher,
        threads: Threads,
    ) -> None:
        self._staging = staging
        self._journal = journal
        self._writeback = writeback
        self._nursery = nursery
        self._notes = notes
        self._room = room
        self._replicas = replicas
        self._publisher = publisher
        self._threads = threads
        self.small_closes = SmallCloses()

    async def sync(self, dirty: Dirty) -> None:
        """Bring the content where the write mode wants it. Raises the store's error; the data stay, and are retried.

        A caller that waits for the store may be cancelled: then the push goes on.
        """
        if dirty.source is not None:
            self._room.account(dirty)
        if dirty.place is None:
            return
        dirty.close()
        local = not dirty.mode.is_through or dirty.kind is Kind.SPECIAL
        if local and self._outlives_us(dirty):
            with trio.CancelScope(shield=True):
                await self._promise(dirty)
                if await self._replicas.hold(dirty):
                    return
        began_s = trio.current_time()
        await self._apart(lambda: self._push(dirty))
        if not local and dirty.source is not None and dirty.uploaded is not None:
            now_s = trio.current_time()
            if self.small_closes.note(now_s, now_s - began_s, dirty.uploaded.size):
                log.info("%s", self.small_closes.hint)

    def sync_soon(self, dirty: Dirty, done: Done) -> bool:
        """As `sync` of a small file that is promised here: ``done`` is called at the end, with the error if there is one.

        False, and nothing is done, if that may wait for more than the journal.
        """
        stamp = dirty.stamp
        if dirty.place is None or stamp is None or dirty.mode.is_through:
            return False
        if not self._is_small(dirty, stamp) or not self._outlives_us(dirty) or self._replicas.wanted(dirty):
            return False
        self._room.account(dirty)
        dirty.close()
        stored = self._is_stored(dirty, stamp)
        changed = not stored and dirty.has_changed(stamp, dirty.noted)

        def ended(error: Exception | None) -> None:
            if error is None:
                try:
                    if changed:
                        reached("promise.committed")
                    self._promised(dirty)
                except Exception as exc:  # noqa: BLE001 (it is the answer)
                    error = exc
            done(error)

        if changed:
            reached("promise.synced")
            self._notes.note(dirty, os.pread(dirty.content.fd, stamp.size, 0), promised=stamp)
            dirty.promised_content(stamp)
        elif stored:
            self._notes.note(dirty)  # as in `_promise`
        if (stored and dirty.key not in self._journal.withdrawn) or (
            not changed and self._journal.is_durable(dirty.number)
        ):
            ended(None)
        else:
            self._journal.when_durable(ended)
        return True

    async def _apart(self, function: Callable[[], Awaitable[None]]) -> None:
        """Wait for what runs in a task of its own, and goes on if the caller is cancelled. Raises what it raises."""
        done = trio.Event()
        errors: list[LuxError | OSError] = []

        async def run() -> None:
            try:
                await function()
            except (LuxError, OSError) as exc:
                errors.append(exc)
            except Exception as exc:
                log.exception("bringing a file to the under-store failed in an unexpected way")
                errors.append(Unforeseen(f"internal error: {type(exc).__name__}"))
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        if errors:
            raise errors[0]

    async def _push(self, dirty: Dirty) -> None:
        """Bring the content to the store, or have it tried again. Raises the store's error, OSError."""
        try:
            await self._writeback.push(dirty)
        except (LuxError, OSError):
            try:
                await self._promise(dirty)
            except OSError:
                log.exception("%r is neither in the under-store nor safe on disk", dirty.key)
            if dirty.conflict is None:
                self._writeback.schedule(dirty)
            raise
        if dirty.key in self._journal.withdrawn:
            await self._journal.commit()  # or a crash brings back an older content, over what is acknowledged now

    async def _promise(self, dirty: Dirty) -> None:
        """Make the content and its journal record durable, unless the store has it. Raises OSError."""
        stamp = dirty.stamp
        if stamp is not None and self._is_stored(dirty, stamp):
            if dirty.place is not None:
                self._notes.note(dirty)  # it is closed: a program that has it mapped may write to it from now on
            if dirty.key in self._journal.withdrawn:
                await self._journal.commit()
        elif stamp is None or dirty.has_changed(stamp, dirty.noted):
            await self._make_durable(dirty, stamp)
        elif not self._journal.is_durable(dirty.number):  # attributes that were set since
            await self._journal.commit()
        self._promised(dirty)

    def _promised(self, dirty: Dirty) -> None:
        if dirty.must_push:
            self._writeback.schedule(dirty)
        elif dirty.mode is not WriteMode.MUST_CACHE:
            self._publisher.publish(dirty)

    async def _make_durable(self, dirty: Dirty, stamp: Stamp | None) -> None:
        inline = None
        if dirty.source is not None and stamp is not None:
            inline, stamp = await self._inline_or_synced(dirty, stamp)
        reached("promise.synced")
        if self._replicas.wanted(dirty):
            self._replicas.plan(dirty)
        known = inline is None and self._is_promised_anyway(dirty)
        if not known and dirty.place is not None:
            self._notes.note(dirty, inline, promised=stamp)
        dirty.promised_content(stamp)  # in the same step: a push that ends during the commit is not to forget it
        if not known:
            await self._journal.commit()
        reached("promise.committed")

    def _outlives_us(self, dirty: Dirty) -> bool:
        """Whether the content is where it outlives the machine."""
        return dirty.source is None or not self._room.is_volatile(self._room.space_of(dirty))

    def _is_small(self, dirty: Dirty, stamp: Stamp) -> bool:
        """Whether the content goes into the journal."""
        return stamp.size <= INLINE_BYTES and dirty.content.complete

    def _is_stored(self, dirty: Dirty, stamp: Stamp) -> bool:
        """Whether the store has all of a file with this stamp: it was opened for writing, and not written to, say."""
        return not dirty.attributes_changed and self._has_content(dirty, stamp)

    def _has_content(self, dirty: Dirty, stamp: Stamp) -> bool:
        """Whether the store has the content with this stamp, though maybe not the attributes."""
        if dirty.uploaded is None or dirty.has_changed(stamp, dirty.uploaded):
            return False
        return dirty.stored.is_under(dirty.key)

    def _is_promised_anyway(self, dirty: Dirty) -> bool:
        """Whether the journal says durably that a restart uploads the staging file, whatever is in it then.

        So it need not be told of each sync of a file: size and time of the content are seen in the staging file itself.
        """
        known = self._journal.files.get(dirty.number)
        if known is None or dirty.place is None or dirty.source is None or not self._journal.is_durable(dirty.number):
            return False
        if not known.closed or not known.content or known.has_inline:
            return False
        record = dirty.record(self._notes.entry(dirty).attributes)
        return msgspec.structs.replace(record, size=known.size, stamp=known.stamp, sent=known.sent) == known

    async def empty(self, dirty: Dirty) -> None:
        """Cut a file that is opened to be written anew. Raises OSError.

        Until it is closed or synced again a restart is to show what was closed last, if the store or the journal has that.
        """
        stamp, record = dirty.stamp, self._journal.files.get(dirty.number)
        if dirty.place is not None and stamp is not None and record is not None and record.closed:
            if self._has_content(dirty, stamp):
                dirty.withdraw()
                if dirty.attributes_changed:  # a push of these is due, and of no half of a content
                    dirty.empties()
            elif record.has_inline and not dirty.has_changed(stamp, dirty.noted):
                dirty.empties()
            if dirty.emptied or not dirty.closed:
                self._notes.note(dirty)
                await self._journal.commit()
                reached("empty.committed")
        await dirty.content.truncate(0)
        await self.cut(dirty)

    async def cut(self, dirty: Dirty) -> None:
        """Note that less of a file comes from an object, which is not to come back after a kill. Raises OSError."""
        if not self._notes.has_other_base(dirty):
            return
        # What is promised from now on is to outlive a power cut.
        stamp = await self._synced(dirty, dirty.content) if dirty.closed else None
        self._notes.note(dirty, promised=stamp)

    async def _inline_or_synced(self, dirty: Dirty, stamp: Stamp) -> tuple[bytes | None, Stamp | None]:
        """Return a small content, for the journal, or sync another one; and the stamp with which it is promised."""
        if self._is_small(dirty, stamp):
            return os.pread(dirty.content.fd, stamp.size, 0), stamp
        return None, await self._synced(dirty, dirty.content)

    async def _synced(self, dirty: Dirty, content: StagedBytes) -> Stamp | None:
        """Sync the content; returns the stamp that it had when that began, since when no push has ended. Raises OSError.

        Else that has noted what the store has, and that is later.
        """
        with content.in_use():
            while True:
                stamp, uploaded = dirty.stamp, dirty.uploaded
                await self._threads.run(self._staging.sync, content.fd)
                if dirty.uploaded is uploaded or dirty.source is None:
                    return stamp

    async def _sync_file(self, content: StagedBytes) -> None:
        with content.in_use():
            await self._threads.run(self._staging.sync, content.fd)

    async def secure(self, dirty: Dirty) -> None:
        """Promise a file as it is now, though nobody has asked for it. Raises OSError."""
        dirty.close()
        stamp = dirty.stamp
        if stamp is not None and not dirty.has_changed(stamp, dirty.noted):
            self._notes.note(dirty)  # the content is the promised one: that it is closed is all that is new
        await self._promise(dirty)

    async def have_here(self, dirty: Dirty) -> None:
        """Make a file durable here, with the next commit, whose promised content only the store may have. Raises OSError.

        It is about to get another key, under which the store has nothing.
        """
        stamp = dirty.stamp
        assert stamp is not None
        inline, synced = await self._inline_or_synced(dirty, stamp)
        if dirty.place is not None and not dirty.emptied and not dirty.finished:
            self._notes.note(dirty, inline, promised=synced)
            dirty.promised_content(synced)

    async def fsync(self, dirty: Dirty) -> None:
        """As `sync`; a file without a name is synced to disk."""
        if dirty.place is None:
            await self._sync_file(dirty.content)
        else:
            await self.sync(dirty)

    def closed(self, dirty: Dirty) -> None:
        """A handle for writing is gone."""
        dirty.released()
        self.ended(dirty)

    def ended(self, dirty: Dirty) -> None:
        """As `closed`, of a handle that was not counted."""
        if not dirty.writers:
            self._room.end_grant(dirty)
        if dirty.writers or dirty.finished:
            return
        if dirty.source is not None:
            self._room.account(dirty)
        if dirty.place is None:
            self._publisher.discard_if_unused(dirty)
        elif dirty.must_push:
            dirty.close()
            self._notes.note(dirty)
            self._writeback.schedule(dirty)
        else:
            self._publisher.publish(dirty)

    async def complete(self, dirty: Dirty) -> None:
        """Fetch the pages that a file still lacks, so that its object may go, and sync it. Raises `StoreError`, OSError."""
        if dirty.source is None:
            return
        content = dirty.source.bytes
        if not content.complete and not content.closed:
            with content.in_use():  # a program that has it open may close it meanwhile
                await self._room.fill(dirty)
                stamp = await self._synced(dirty, content)
            if dirty.place is not None:
                self._notes.note(dirty, promised=stamp)
        if dirty.source is not None:
            dirty.source.old = None
