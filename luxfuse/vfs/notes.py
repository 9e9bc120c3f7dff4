"""Notes in the journal about dirty entries, and the names that these hold."""

from __future__ import annotations

from collections.abc import Callable

from luxfuse.cache.staged import Stamp
from luxfuse.index.entries import Entry
from luxfuse.index.journal import FileRecord, Journal
from luxfuse.types import Kind, WriteMode
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import Stored
from luxfuse.vfs.namespace import Namespace


class Notes:
    """The notes of one mount."""

    def __init__(
        self, *, namespace: Namespace, entries: DirtyEntries, journal: Journal, mode_of: Callable[[str], WriteMode]
    ) -> None:
        """``mode_of`` tells the write mode of a key."""
        self._namespace = namespace
        self._entries = entries
        self._journal = journal
        self.mode_of = mode_of
        self.misled: set[Dirty] = set()
        """Those that have another key than their holders know."""

    def entry(self, dirty: Dirty) -> Entry:
        """Return the entry of a dirty inode, also if its name is gone."""
        entry = self._namespace.peek(*dirty.place) if dirty.place is not None else dirty.orphan
        assert entry is not None
        return entry

    def mark(self, entry: Entry, key: str, expect: str | None, place: tuple[int, bytes] | None = None) -> Dirty:
        """Make an inode dirty, and hold its name, which is its ``place`` if that is given.

        ``expect``: the version that the store has, as `Stored` has it.
        """
        parent, name = place = place or self._namespace.places.place(entry.inode)
        dirty = Dirty(
            self._journal.new_id(),
            entry.inode,
            entry.kind,
            self.mode_of(key),
            place,
            key,
            Stored(expect, (key, entry.version) if entry.kind is Kind.FILE and entry.version else None),
        )
        self._entries.add(dirty)
        self._namespace.hold(entry.inode, parent, name)
        return dirty

    def has_other_base(self, dirty: Dirty) -> bool:
        """Whether another part of a file with a name comes from an object than the journal has been told."""
        before = self._journal.files.get(dirty.number)
        if before is None or dirty.place is None or dirty.source is None:
            return False
        return before.base_size != dirty.content.base_bytes

    def note(
        self, dirty: Dirty, inline: bytes | None = None, *, promised: Stamp | None = None, entry: Entry | None = None
    ) -> None:
        """Bring an entry to the journal, to be committed soon. ``promised``: the stamp of the content when it was synced.

        Without, what was promised before stays that. ``entry``: that of the inode, where it is at hand.
        """
        before = self._journal.files.get(dirty.number)
        if before is not None and before.key != dirty.key and dirty.replicas.holders:
            dirty.replicas.misled()
            self.misled.add(dirty)
        record = dirty.record((entry or self.entry(dirty)).attributes)
        if promised is not None:
            record.stamp, record.size = promised.mtime_ns, promised.size
        elif inline is None and before is not None:
            # What the store has needs none, and one that stays may be of an earlier content.
            record.has_inline = before.has_inline and (record.content or dirty.kind is not Kind.FILE)
            if dirty.source is not None and dirty.content_changed(dirty.noted):
                _keep_promise(record, before, stored=dirty.uploaded is not None)
        if inline is None and record == before:
            return
        self._journal.put_file(dirty.number, record, inline)


def _keep_promise(record: FileRecord, before: FileRecord, *, stored: bool) -> None:
    """Let a record promise no more of a content than the one before it: any part of what was written since may be lost.

    ``stored``: the store has, under the same key, what the file was. That there is more is then told by its time.
    """
    if not before.has_inline:
        # Of what an earlier run has left, the store has it under the key that it had.
        is_stored = not before.content and (stored or (before.key == record.key and before.stamp != 0))
        kept = record.content and (before.closed or is_stored)
        if not kept or record.stamp <= before.stamp:  # a time that was set back tells nothing
            return
        record.content = not is_stored
    record.stamp, record.size = before.stamp, before.size
