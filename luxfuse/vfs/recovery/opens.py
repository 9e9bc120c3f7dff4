"""Takes over what programs had open when the daemon before this one was killed (`vfs.will`), after the journal.

The kernel goes on with its handles and backing ids: so each open gets the number that it had, and each inode the content
that it was opened with, be its name another's by now.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.upload_source import Source
from luxfuse.index.journal import Journal
from luxfuse.tiers.directory import CANNOT_WRITE
from luxfuse.tiers.staging import Staging
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import Stored
from luxfuse.vfs.files import Files
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.recovery.contents import JournalContents
from luxfuse.vfs.will import BackingFact, Inherited, NamelessFact, Will

log = logging.getLogger(__name__)


class InheritedOpens:
    """The opens of one volume."""

    def __init__(
        self,
        *,
        inherited: Inherited,
        will: Will,
        files: Files,
        directories: OpenDirectories,
        entries: DirtyEntries,
        cache: PageCache,
        staging: Staging,
        contents: JournalContents,
        journal: Journal,
    ) -> None:
        self._inherited = inherited
        self._will = will
        self._files = files
        self._directories = directories
        self._entries = entries
        self._cache = cache
        self._staging = staging
        self._contents = contents
        self._journal = journal
        self._lost: set[int] = set()
        """Inodes that could not be taken over, of those in passthrough or read by lanes."""

    def restore_nameless(self) -> set[int]:
        """Make files dirty again that have no name and are open; returns the numbers of their staging files."""
        numbers = set()
        for inode, fact in self._will.nameless_files().items():
            if fact.number in self._journal.files or self._entries.get(inode) is not None:
                self._will.not_nameless(inode)  # killed before the change that takes its name counted
            elif self._inherited.is_open(inode) and self._restore_nameless(inode, fact):
                numbers.add(fact.number)
            else:
                self._will.not_nameless(inode)
                self._staging.discard(fact.number)
        return numbers

    def _restore_nameless(self, inode: int, fact: NamelessFact) -> bool:
        try:
            content = self._contents.open(fact.number, fact.record, is_open=True)
        except OSError as exc:
            if exc.errno not in CANNOT_WRITE:
                raise
            content = None
        if content is None:
            log.error("the content of inode %d, which has no name and is open, is gone", inode)
            return False
        record = fact.record
        stored = Stored(record.expect)
        dirty = Dirty(fact.number, inode, record.kind, record.mode, None, record.key, stored, orphan=fact.entry)
        dirty.resume(Source(record.key, content), os.fstat(content.fd).st_blocks * 512, promised=False)
        self._cache.hierarchy.of(self._staging.directory_of(fact.number)).count_staged(dirty.accounted_bytes)
        self._entries.add(dirty)
        return True

    def removed_and_read(self) -> dict[str, int]:
        """Return the inodes of objects that are to be removed once nobody reads them any more, by key."""
        copied = self._will.copied_inodes().items()
        return {f.key: inode for inode, f in copied if f.nameless and f.key and self._inherited.is_open(inode)}

    def restore(self) -> None:
        """Take all opens over. Names are as they were, and what is dirty is dirty again."""
        taken_over = self._restore_copied()
        self._restore_registered()
        for number, inode, positions in self._inherited.directories:
            self._directories.inherit(number, inode, positions)
        # The end of an open that is not taken over is not counted either.
        for inode in self._inherited.registered.keys() - self._lost:
            self._count_writers(inode, self._inherited.registered[inode][1])
        for number, inode, writing in self._inherited.handles:
            if number in taken_over:
                self._count_writers(inode, int(writing))

    def left(self) -> list[Dirty]:
        """Return the files that were about to be written: the kernel sends the open again, or has given it up.

        One that is still written, but could not be taken over, is promised when it is closed, as any other.
        """
        written = {inode for inode in self._lost if self._inherited.registered[inode][1]}
        return [d for d in self._entries if d.inode not in written and is_left(d)]

    def _count_writers(self, inode: int, writers: int) -> None:
        dirty = self._entries.get(inode)
        if dirty is not None:
            for _ in range(writers):
                dirty.opened()
        elif writers:
            log.error("inode %d is open for writing, and nothing is known of its content", inode)

    def _restore_copied(self) -> set[int]:
        """Return the numbers of the handles that were taken over."""
        taken_over = set()
        facts = self._will.copied_inodes()
        for number, inode, writing in self._inherited.handles:
            fact = facts.get(inode)
            if fact is None:
                log.error("inode %d is open, and nothing is known of it", inode)
                continue
            self._files.copied.inherit(number, inode, fact, writing=writing)
            taken_over.add(number)
            dirty = self._entries.get(inode)
            if dirty is not None and dirty.source is not None:
                self._files.copied.attach_staged(inode, dirty.source.bytes)
        for key, inode in self.removed_and_read().items():
            self._files.copied.defer(key, inode)
        for inode in facts.keys() - {inode for _, inode, _ in self._inherited.handles}:
            self._will.not_copied(inode)
        return taken_over

    def _restore_registered(self) -> None:
        facts = self._will.backings()
        for inode in self._inherited.registered:
            fact = facts.get(inode)
            if fact is None:
                log.error("inode %d is open in passthrough, and nothing is known of it", inode)
                self._files.backings.disinherit(inode)
                self._lost.add(inode)
                continue
            fd, stamp_ns = self._file_of(inode, fact)
            try:
                if not self._files.backings.inherit(inode, fact, fd, stamp_ns):
                    self._lost.add(inode)
                    self._will.no_backing(inode)
            finally:
                if fd >= 0:
                    os.close(fd)
        for inode in facts.keys() - self._inherited.registered.keys():
            self._will.no_backing(inode)

    def _file_of(self, inode: int, fact: BackingFact) -> tuple[int, int]:
        """Return the file of a backing: a descriptor to read it, and its mtime as we left it; -1: it is lost."""
        dirty = self._entries.get(inode)
        if dirty is not None and dirty.source is not None:
            return _opened(f"/proc/self/fd/{dirty.content.fd}", fact.key), os.fstat(dirty.content.fd).st_mtime_ns
        if fact.oid is not None:
            obj = self._cache.acquire(fact.key, fact.entry.version, fact.entry.size)
            try:
                if obj.oid == fact.oid and obj.space is not None:
                    return _opened(obj.space.directory.file_of(obj.oid), fact.key), obj.record.stamp
            finally:
                self._cache.release(obj)
        return -1, 0


def _opened(path: Path | str, key: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        log.info("the cache file of %r, which is open, is gone: %s", key, exc.strerror)
        return -1


def is_left(dirty: Dirty) -> bool:
    """Whether nobody writes a file that was opened for that, and not closed since."""
    return not (dirty.finished or dirty.writers or dirty.place is None) and (dirty.emptied or not dirty.closed)
