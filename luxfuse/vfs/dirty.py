"""Changes made here that the under-store does not have yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from luxfuse.cache.staged import StagedBytes, Stamp, stamp_from
from luxfuse.cache.upload_source import Source, Uploaded
from luxfuse.errors import LuxError
from luxfuse.index.entries import Attributes, Entry
from luxfuse.index.journal import FileRecord
from luxfuse.types import ABSENT, Kind, WriteMode
from luxfuse.vfs.dirty_fields import NOTHING_UNHEARD, Replicas, Stored, Tries, Unheard


@dataclass(slots=True, eq=False)
class Dirty:
    """One file, directory, symlink or special file with changes of its own. ``number`` names it in the journal.

    ``place`` is (parent inode, name), None once it is unlinked or replaced. ``uploaded`` is the stamp of the content that
    the store has, ``noted`` of the content that the journal promises to bring there.
    """

    number: int
    inode: int
    kind: Kind
    mode: WriteMode
    place: tuple[int, bytes] | None
    key: str
    stored: Stored
    source: Source | None = None
    """The content, of files whose content may have changed."""
    target: bytes = b""
    """The target of a symlink."""
    attributes_changed: bool = False
    writers: int = 0
    closed: bool = False
    accounted_bytes: int = 0
    reservations: int = 0
    """Writes under way whose room is reserved."""
    uploaded: Stamp | None = None
    noted: Stamp | None = None
    noted_before: Stamp | None = None
    """What was ``noted`` when the content that is being uploaded was looked at."""
    checksums: dict[int, int] = field(default_factory=dict)
    """Of the pages of the content that has the stamp ``uploaded``."""
    since_s: float = field(default_factory=time.time)
    tries: Tries = field(default_factory=Tries)
    conflict: LuxError | None = None
    """Somebody else has written the object, and this is not to replace it: it is set aside when it is closed."""
    lock: trio.Lock = field(default_factory=trio.Lock)
    finished: bool = False
    promised: bool = False
    """Of one whose name is gone: whether a restart would look for the staging file until that is durable."""
    orphan: Entry | None = None
    """The entry of a name that is gone."""
    unprivileged: bool = False
    """Whether a process of another user than root has it open for writing: set-user-ID goes with the first write."""
    times_set: bool = False
    """Whether a program has set the times of the content."""
    sent_early: bool = False
    """Whether an upload began while the file was being written."""
    replicas: Replicas = field(default_factory=Replicas)
    emptied: bool = False
    """Whether an open has emptied it since it was closed: until it is closed again, a restart has what it was before."""

    # -- name and key

    def take_key(self, place: tuple[int, bytes], key: str, mode: WriteMode, expect: str | None) -> None:
        """It has another name and key, where the store has ``expect``: what it has under the old one does not count."""
        self.place, self.key, self.mode = place, key, mode
        self.stored.expects(expect)
        self.stored.unheard = False
        if self.source is not None:
            self.source.key = key
            self.uploaded = None  # the store has nothing under this key
        else:
            self.attributes_changed = True

    def take_place(self, place: tuple[int, bytes]) -> None:
        """It has another name; the key follows."""
        self.place = place

    def lose_name(self, entry: Entry) -> None:
        """Its name is gone, of which ``entry`` was recorded: it is not brought to the store any more."""
        self.place, self.orphan = None, entry
        if self.source is not None:
            self.source.cancelled = True

    # -- promises

    def close(self) -> None:
        """The content as it is now is to survive a restart."""
        self.closed, self.emptied = True, False

    def withdraw(self) -> None:
        """The next run keeps the content in the recovered directory, and does not upload it."""
        self.closed = False

    def empties(self) -> None:
        """An open is about to empty it; what was promised last is in the journal."""
        self.emptied = True

    @property
    def is_written_anew(self) -> bool:
        """Whether it was emptied to be written anew, and is not yet: nobody wants half of that in the store."""
        return self.emptied and self.writers > 0

    def promised_content(self, stamp: Stamp | None) -> None:
        """The journal promises to bring the content with this stamp to the store; None: the store has what was promised."""
        self.noted = stamp

    def looked_at(self) -> None:
        """The content is looked at, to be uploaded as it is now."""
        self.noted_before = self.noted

    @property
    def promised_since_read(self) -> Stamp | None:
        """The stamp of what was promised since, if anything was."""
        return self.noted if self.noted is not self.noted_before else None

    @property
    def is_promised_here(self) -> bool:
        """Whether the journal has what was promised last of the content: else only the store may have it."""
        return self.closed and self.noted is not None

    def awaits_commit(self, promised: bool) -> None:
        """``promised``: a restart would look for the staging file until it is durable that the name is gone."""
        self.promised = promised

    def set_aside(self, conflict: LuxError) -> None:
        """Somebody else has written the object, and this is not to replace it."""
        self.conflict = conflict

    def end(self) -> None:
        """It is not dirty any more, or given up."""
        self.finished = True

    def pushed(self) -> None:
        """The store has everything: changes from now on wait from now on."""
        self.tries.succeeded()
        self.since_s = time.time()

    # -- attributes

    def made(self, target: bytes = b"") -> None:
        """A directory, symlink (to ``target``) or special file was made, which is all there is of it."""
        self.target, self.attributes_changed, self.closed = target, True, True

    def describe(self) -> None:
        """Its attributes were changed here, which is promised unless somebody writes the content just now."""
        self.attributes_changed = True
        self.closed = self.closed or self.source is None or not self.writers

    def told(self) -> None:
        """The store is told the attributes that there are here, or has them."""
        self.attributes_changed = False

    def differs(self, changed: bool = True) -> None:
        """The store has other attributes than there are here, if ``changed``; else what is known stays so."""
        self.attributes_changed = self.attributes_changed or changed

    def set_times(self) -> None:
        """A program has set the times of the content."""
        self.times_set = True

    def keeps_content(self) -> None:
        """The content is what the store has, but for its times, which are attributes."""
        self.uploaded, self.attributes_changed = self.stamp, True

    # -- opens

    def opened(self) -> None:
        """Somebody opens it for writing."""
        self.writers += 1

    def released(self) -> None:
        """One of those has closed it."""
        self.writers -= 1
        assert self.writers >= 0

    def lose_privileges(self) -> None:
        """A process of another user than root has it open for writing."""
        self.unprivileged = True

    # -- content

    def stage(self, source: Source) -> None:
        """It has content of its own."""
        self.source = source

    def resume(self, source: Source, accounted_bytes: int, *, promised: bool) -> None:
        """It has the content that an earlier run left, and what that takes on disk. ``promised``: the journal has that
        promise, and nobody had it open for writing since."""
        self.source = source
        self.noted = self.stamp if promised else None
        self.accounted_bytes = accounted_bytes

    def adopt(self, checksums: dict[int, int]) -> None:
        """The staging file was a cache file, with these checksums."""
        self.checksums = checksums

    def unstage(self) -> None:
        """It has no content of its own any more: the staging file is in the cache, or gone."""
        assert self.source is not None
        self.source.bytes.close()
        self.source = None

    def is_unchanged(self) -> None:
        """The store has the content as it is now."""
        self.uploaded = self.stamp

    def has_uploaded(self, uploaded: Uploaded) -> None:
        """The store has the content."""
        self.uploaded, self.checksums = uploaded.stamp, uploaded.checksums
        self.stored.heard_of(uploaded.stamp)

    def copy_has(self, uploaded: Stamp | None) -> None:
        """The store has, under the new key, a copy of what was uploaded under the old one."""
        self.uploaded = uploaded

    def begin_early(self) -> None:
        """An upload begins while it is being written."""
        self.sent_early = True

    def count(self, accounted_bytes: int) -> int:
        """The staging file takes so much on disk; returns how much more than was accounted for."""
        grown = accounted_bytes - self.accounted_bytes
        self.accounted_bytes = accounted_bytes
        return grown

    def reserve(self) -> None:
        """A write begins whose room is reserved."""
        self.reservations += 1

    def unreserve(self) -> None:
        """It is over."""
        self.reservations -= 1

    @property
    def content(self) -> StagedBytes:
        """The content, of one that has some."""
        assert self.source is not None
        return self.source.bytes

    @property
    def stamp(self) -> Stamp | None:
        """The stamp of the content now."""
        st = self.source.bytes.stat() if self.source is not None else None
        return stamp_from(st) if st is not None else None

    def content_changed(self, since: Stamp | None) -> bool:
        """Whether the content may not be what it was at ``since``."""
        if since is None:
            return self.source is not None and not self.source.bytes.closed
        now = self.stamp
        return now is not None and self.has_changed(now, since)

    def has_changed(self, now: Stamp, since: Stamp | None) -> bool:
        """Whether the content with the stamp ``now`` may not be what it was at ``since``."""
        return since is None or self.source is None or self.source.bytes.has_changed(now, since)

    @property
    def must_push(self) -> bool:
        """Whether there is something that the under-store should have and has not."""
        if self.place is None or self.mode is WriteMode.MUST_CACHE or self.kind is Kind.SPECIAL:
            return False
        if self.conflict is not None:
            return False
        return self.attributes_changed or self.content_changed(self.uploaded)

    @property
    def may_be_stored(self) -> bool:
        """Whether the store may have something of it under its key, but for a push that is on its way."""
        if self.kind is Kind.SPECIAL:
            return False
        if self.stored.expect != ABSENT or self.stored.unheard:
            return True
        return self.stored.resumed and self.mode is not WriteMode.MUST_CACHE

    @property
    def unheard(self) -> Unheard:
        """What the store may have of a file whose last uploads had no answer."""
        stored = self.stored
        if not stored.unheard or stored.resumed or stored.expect is None or self.source is None or self.lock.locked():
            return NOTHING_UNHEARD
        return NOTHING_UNHEARD if stored.described is not None else (stored.expect, stored.sent)

    @property
    def needs_base(self) -> bool:
        """Whether part of the content is only in the object that the file was."""
        return self.source is not None and not self.source.bytes.complete

    def record(self, attributes: Attributes | None) -> FileRecord:
        """Return what the journal keeps of it."""
        content = self.source.bytes if self.source is not None else None
        base = content.base.record if content is not None and content.base is not None else None
        now, stored = self.stamp, self.stored.at
        return FileRecord(
            key=self.key,
            kind=self.kind,
            mode=self.mode,
            inode=self.inode,
            attributes=attributes,
            expect=self.stored.expect,
            base_key=base.key if base is not None else "",
            base_version=base.version if base is not None else "",
            base_size=content.base_bytes if content is not None else 0,
            size=now.size if now is not None else len(self.target),
            stamp=now.mtime_ns if now is not None else 0,
            closed=self.closed,
            content=self.kind is not Kind.FILE or (now is not None and self.has_changed(now, self.uploaded)),
            since_s=self.since_s,
            doomed=self.stored.doomed,
            stored=stored if stored is not None and stored[0] != self.key else None,
            generation=self.replicas.generation,
            holders=self.replicas.holders,
            inherits=stored[0] if stored is not None else self.stored.inherits,
            emptied=self.emptied,
            sent=self.stored.sent,
        )


class DirtyEntries:
    """All of them, by inode number."""

    def __init__(self) -> None:
        self._by_inode: dict[int, Dirty] = {}
        self._partial: set[Dirty] = set()
        self._displaced: set[Dirty] = set()

    def get(self, inode: int) -> Dirty | None:
        """Return the dirty entry of an inode, None if it is not dirty."""
        return self._by_inode.get(inode)

    def add(self, dirty: Dirty) -> None:
        """Take one in; an inode has one at most."""
        assert dirty.inode not in self._by_inode
        self._by_inode[dirty.inode] = dirty

    def remove(self, dirty: Dirty) -> None:
        """It is not dirty any more, or given up."""
        if self._by_inode.get(dirty.inode) is dirty:
            del self._by_inode[dirty.inode]
        self._partial.discard(dirty)
        self._displaced.discard(dirty)
        dirty.end()

    def note_partial(self, dirty: Dirty) -> None:
        """The content of one lies in part in an object of the store: `based_on` finds it."""
        self._partial.add(dirty)

    def based_on(self, key: str) -> list[Dirty]:
        """Return those that need the object under a key for what their staging files lack."""
        self._partial = {dirty for dirty in self._partial if dirty.needs_base}
        return [d for d in self._partial if d.source and d.source.bytes.base and d.source.bytes.base.record.key == key]

    def note_displaced(self, dirty: Dirty) -> None:
        """One has another key than its object in the store: `stored_under` finds it."""
        self._displaced.add(dirty)

    def stored_under(self, key: str) -> list[Dirty]:
        """Return those of which the store has what was promised last under a key that is not theirs any more."""
        self._displaced = {d for d in self._displaced if d.place is not None and d.stored.is_elsewhere(d.key)}
        return [d for d in self._displaced if d.stored.is_under(key)]

    def __iter__(self) -> Iterator[Dirty]:
        return iter(list(self._by_inode.values()))

    def __len__(self) -> int:
        return len(self._by_inode)

    def below(self, prefix: str) -> list[Dirty]:
        """Return those whose keys begin with ``prefix``."""
        return [d for d in self if d.key.startswith(prefix)]
