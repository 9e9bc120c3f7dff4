"""The end of a dirty state: the staging file becomes the cache file of the object, or goes with its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.upload import Uploader
from luxfuse.index.entries import Entry
from luxfuse.index.journal import Journal
from luxfuse.index.object_records import ObjectRecord
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, WriteMode
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.kernel import Kernel
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.notes import Notes
from luxfuse.vfs.replicas import PromisedReplicas
from luxfuse.vfs.room import Room
from luxfuse.vfs.will import NamelessFact, Will
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

PUBLISH_AGAIN_S = (0.01, 0.05, 0.2)


class Publisher:
    """Ends the dirty states of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        entries: DirtyEntries,
        files: Files,
        cache: PageCache,
        staging: Staging,
        journal: Journal,
        kernel: Kernel,
        writeback: WriteBack,
        uploader: Uploader,
        nursery: trio.Nursery,
        notes: Notes,
        room: Room,
        replicas: PromisedReplicas,
        will: Will,
    ) -> None:
        self._will = will
        self._namespace = namespace
        self._entries = entries
        self._files = files
        self._cache = cache
        self._staging = staging
        self._journal = journal
        self._kernel = kernel
        self._writeback = writeback
        self._uploader = uploader
        self._nursery = nursery
        self._notes = notes
        self._room = room
        self._replicas = replicas
        self._mapped: set[Dirty] = set()
        self._conflict: Callable[[Dirty], None] = lambda _dirty: None
        files.copied.on_closed(self.closed)
        files.backings.on_closed(self.closed)

    def on_conflict(self, begin: Callable[[Dirty], None]) -> None:
        """Have ``begin`` called with a file that is not written to any more and may not replace another's version.

        The listener is made later: it needs the tree, which needs this.
        """
        self._conflict = begin

    @property
    def has_mapped(self) -> bool:
        """Whether there are files that a program might have mapped."""
        return bool(self._mapped)

    # -- back into the cache

    def publish(self, dirty: Dirty) -> None:
        """End the dirty state if the store has everything and no program can change it any more.

        What the disk refuses is no failure of those who ask: it is tried again.
        """
        try:
            self._publish(dirty)
        except OSError as exc:
            self._stays(dirty, exc)

    def _publish(self, dirty: Dirty) -> None:
        if dirty.finished or dirty.writers or dirty.lock.locked():
            return
        if dirty.place is None:
            self.discard_if_unused(dirty)
            return
        if dirty.mode is WriteMode.MUST_CACHE or dirty.kind is Kind.SPECIAL:
            return
        if dirty.conflict is not None:
            self._conflict(dirty)
            return
        if dirty.must_push:
            self._writeback.schedule(dirty)
            return
        if dirty.source is None:
            self.finish(dirty)
        elif self._kernel.hands_over and self._may_be_mapped(dirty):
            if dirty not in self._mapped:
                self._mapped.add(dirty)
                self._nursery.start_soon(self._publish_soon, dirty)
        elif (keep := self._can_keep(dirty)) or self._files.backings.retire_idle(dirty.inode):
            reached("publish.begun")
            if self._put_back(dirty, keep=keep):
                self.finish(dirty)
        else:
            self._mapped.add(dirty)  # its readers in passthrough keep its file: later writers must write to that one

    def _may_be_mapped(self, dirty: Dirty) -> bool:
        """Whether a program can still write to the file: in passthrough, a mapping outlives the close of its file."""
        if not dirty.content.seal():
            return True
        return self._staging.has_writers(self._staging.place_of(dirty.number))

    def _stays(self, dirty: Dirty, exc: OSError) -> None:
        """The disk is sick: the staging file stays, dirty or without a name, until the disk lets it go."""
        log.info("the staging file %x stays for now: %s", dirty.number, exc)
        self._mapped.add(dirty)

    def publish_mapped(self) -> None:
        """Look again at the files that a program might have mapped, and at those that a sick disk kept."""
        for dirty in list(self._mapped):
            self.publish(dirty)

    async def _publish_soon(self, dirty: Dirty) -> None:
        """The kernel lets go of a backing file a little after the close: look again before it passes for mapped."""
        for delay_s in PUBLISH_AGAIN_S:
            await trio.sleep(delay_s)
            if dirty in self._mapped:
                self.publish(dirty)

    def _can_keep(self, dirty: Dirty) -> bool:
        """Whether the staging file can become the cache file of the object."""
        wanted = dirty.content.size > 0 and bool(dirty.checksums) and dirty.mode is not WriteMode.THROUGH
        wanted = wanted and self._cache.hierarchy.placing(dirty.key).keep
        return wanted and self._cache.can_install(dirty.key, self._notes.entry(dirty).version)

    def _put_back(self, dirty: Dirty, *, keep: bool) -> bool:
        """Make the staging file a cache file, or remove it; False if neither can be done yet. Raises OSError."""
        source, entry = dirty.source, self._notes.entry(dirty)
        assert source is not None
        fd, key = source.bytes.fd, dirty.key
        st = os.fstat(fd)
        self._room.account(dirty)
        oid = self._cache.object_id(key, entry.version)
        space = self._room.space_of(dirty)
        self._files.backings.will_detach(dirty, entry, oid)
        if keep:
            try:
                self._staging.publish(dirty.number, oid)
            except OSError as exc:  # the disk is full or sick; that is nothing to a program that closes the file
                log.info("%r is in the under-store, and not kept in the cache: %s", key, exc)
                keep = False
                if not self._files.backings.retire_idle(dirty.inode):
                    self._mapped.add(dirty)
                    self._files.backings.stays_staged(dirty.inode)
                    return False
        if keep:
            reached("publish.renamed")
            record = ObjectRecord(key, entry.version, st.st_size, dirty.accounted_bytes, stamp=st.st_mtime_ns)
            space.staged_bytes -= dirty.accounted_bytes
            self._cache.install(record, dirty.checksums, st.st_ino, space)
            reached("publish.installed")
        else:
            self._room.remove(dirty)
        dirty.count(0)
        self._files.detach_staged(dirty, entry, oid, st.st_mtime_ns)
        dirty.unstage()
        if source.open is not None:
            self._nursery.start_soon(self._uploader.parts.give_up_open, source)
        return True

    def finish(self, dirty: Dirty) -> None:
        """End the dirty state: the store has all of it, or there is nothing of it. What holds its content is gone."""
        self._mapped.discard(dirty)
        self._journal.drop_file(dirty.number)
        reached("publish.dropped")
        self._entries.remove(dirty)
        self._writeback.forget(dirty)
        if dirty.place is not None:
            self._namespace.settle(dirty.inode, *dirty.place)

    def keep_cached(self, dirty: Dirty, entry: Entry, old_version: str) -> None:
        """New attributes made a new version of an object: the pages of the old one are as good."""
        if dirty.kind is Kind.DIRECTORY:
            return
        oid = self._cache.rename(dirty.key, old_version, entry.size, dirty.key, entry.version)
        self._files.moved(dirty.inode, entry, dirty.key, oid)

    # -- without a name

    def orphan(self, dirty: Dirty, entry: Entry) -> None:
        """The name of a dirty entry goes: it is not brought to the store any more. Its open handles live on."""
        dirty.lose_name(entry)
        if dirty.source is not None and dirty.source.open is not None:
            self._nursery.start_soon(self._uploader.parts.give_up_open, dirty.source)
        self._namespace.belief.let_go(dirty.inode)
        record, durable = self._journal.files.get(dirty.number), self._journal.is_durable(dirty.number)
        # What is on the disk may be an older record, which a restart would take for the truth.
        dirty.awaits_commit(record is not None and not (durable and (record.has_inline or not record.closed)))
        self._journal.drop_file(dirty.number)
        self._replicas.removed(dirty)
        self._writeback.forget(dirty)
        if dirty.source is not None:
            self._will.nameless(dirty.inode, NamelessFact(dirty.number, dirty.record(entry.attributes), entry))
            reached("orphan.noted")
        self.discard_if_unused(dirty)

    def discard_if_unused(self, dirty: Dirty) -> None:
        """Remove the content of an unlinked file that is not open."""
        if dirty.finished or dirty.writers or dirty.lock.locked() or dirty.inode in self._files.copied:
            return
        self._files.backings.retire(dirty.inode)
        if self._kernel.is_registered(dirty.inode):
            return  # its readers still ask for its size, and for bytes ahead: `closed` comes with the last of them
        if dirty.source is not None:
            try:
                self._room.remove(dirty)
            except OSError as exc:  # its name is gone all the same
                self._stays(dirty, exc)
                return
            reached("discard.removed")
            dirty.count(0)
            dirty.unstage()
        self._mapped.discard(dirty)
        self._entries.remove(dirty)
        self._will.not_nameless(dirty.inode)

    def closed(self, inode: int) -> None:
        """The last open that only reads is gone."""
        dirty = self._entries.get(inode)
        if dirty is not None and dirty.place is None:
            self.discard_if_unused(dirty)
