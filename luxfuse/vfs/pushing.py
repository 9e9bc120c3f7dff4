"""One push of a dirty entry: its content, its attributes, or its marker, against what others write meanwhile.

The version that is about to be replaced is noted in the journal before, the new one afterwards. Where the store has
another version than the expected one, it is ours if an answer got lost, or somebody else's: that one is saved first, or
ours gives way.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import msgspec

from luxfuse.cache.checksums import ChangedMeanwhile, has_same_content
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.staged import Stamp
from luxfuse.cache.upload import Uploader
from luxfuse.cache.upload_source import OldObject, Source, Uploaded
from luxfuse.core.replicas import write_of
from luxfuse.errors import NotFound, StoreError, StoreUnavailable, UploadsForgotten, VersionChanged, may_have_arrived
from luxfuse.index.entries import Attributes, Entry, describe
from luxfuse.index.journal import Journal
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind, ObjectInfo
from luxfuse.vfs.attributes import parse_attributes, to_metadata
from luxfuse.vfs.dirty import Dirty
from luxfuse.vfs.errors import Conflict, Replaced
from luxfuse.vfs.evidence import AttributeEvidence
from luxfuse.vfs.keeping import foreign, keep
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.replicator import Replicator
from luxfuse.vfs.small_pushes import CONFLICT_ROUNDS, MARKED, push_marker, push_symlink

log = logging.getLogger(__name__)


class Publishes(Protocol):
    """The end of dirty states; `Publisher` implements it."""

    def publish(self, dirty: Dirty) -> None:
        """An entry is in the store: end the dirty state if nobody writes to it any more."""

    def keep_cached(self, dirty: Dirty, entry: Entry, old_version: str) -> None:
        """An object has another version, though the same content, than the one given."""


class Pusher:
    """Brings entries of one mount to the store."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        uploader: Uploader,
        journal: Journal,
        recovered: Recovered,
        evidence: AttributeEvidence,
        replicator: Replicator | None,
        fail_on_conflict: bool,
    ) -> None:
        """``replicator``: of the nodes that hold what was promised, and may have brought it up, taking us for dead."""
        self._namespace = namespace
        self._uploader = uploader
        self._store = uploader.store
        self._journal = journal
        self._recovered = recovered
        self._evidence = evidence
        self._publisher: Publishes
        self.fail_on_conflict = fail_on_conflict
        self.conflicts = 0
        self._replicator = replicator

    def connect(self, publisher: Publishes) -> None:
        """Give it what needs write-back itself."""
        self._publisher = publisher

    async def push(self, dirty: Dirty) -> None:
        """Bring an entry to the store; the caller has its lock, and the turn of its key. Raises `StoreError`, OSError."""
        assert dirty.place is not None
        entry = self._namespace.peek(*dirty.place)
        assert entry is not None
        dirty.told()
        dirty.looked_at()
        reached("push.begun")
        try:
            if dirty.source is not None and dirty.content_changed(dirty.uploaded):
                uploaded = await self._push_content(dirty, entry)
                info = uploaded.info
                dirty.has_uploaded(uploaded)
            elif dirty.kind is Kind.FILE or (dirty.kind is Kind.SYMLINK and not dirty.target):
                info = await self._push_attributes(dirty, entry)
            elif dirty.kind is Kind.DIRECTORY:
                info = await push_marker(self._store, dirty, entry)
            else:
                info = await push_symlink(self._store, dirty, entry, self._give_way_or_save)
        except Replaced:
            self._namespace.belief.expire(dirty.inode)
            raise
        except BaseException as exc:
            dirty.differs()
            dirty.stored.unheard = dirty.stored.unheard or may_have_arrived(exc)
            raise
        reached("push.stored")
        dirty.stored.pushed(dirty.key, info.version)
        self._note_pushed(dirty, info)
        reached("push.noted")

    def _note_pushed(self, dirty: Dirty, info: ObjectInfo) -> None:
        if dirty.place is None:
            return
        entry = self._namespace.peek(*dirty.place)
        if entry is None or entry.inode != dirty.inode:
            return
        old_version = entry.version
        entry.version = info.version if dirty.kind is not Kind.DIRECTORY else MARKED
        if dirty.uploaded is not None:
            entry.size = dirty.uploaded.size
            entry.mtime_ns = dirty.uploaded.mtime_ns
            entry.attributes = msgspec.structs.replace(entry.attributes or Attributes(), mtime_ns=dirty.uploaded.mtime_ns)
        entry.checked_s = self._namespace.now_s()
        describe(entry, entry.attributes, info.mtime_ns, entry.checked_s)
        if entry.attributes is not None and self._store.abilities.metadata:
            self._evidence.note(None, entry.attributes)
        self._namespace.put(*dirty.place, entry)
        self._note_expected(dirty, entry)
        if dirty.source is None and old_version and entry.version != old_version:
            self._publisher.keep_cached(dirty, entry, old_version)

    def _note_expected(self, dirty: Dirty, entry: Entry) -> None:
        """Tell the journal what the store has: it stays there for as long as the file is open.

        Content that was promised while the push was under way is not forgotten for it.
        """
        since = dirty.promised_since_read
        before = self._journal.files.get(dirty.number)
        if before is None:
            return
        record = dirty.record(entry.attributes)
        record.has_inline = before.has_inline and dirty.kind is not Kind.FILE
        if dirty.uploaded is not None and since is not None and dirty.has_changed(since, dirty.uploaded):
            record.content, record.stamp, record.size = before.content, before.stamp, before.size
            record.has_inline = before.has_inline
        elif dirty.uploaded is not None:  # a program may have written to the file since: its mtime will tell
            record.content, record.stamp, record.size = False, dirty.uploaded.mtime_ns, dirty.uploaded.size
            dirty.promised_content(None)
        self._journal.put_file(dirty.number, record)

    async def _push_content(self, dirty: Dirty, entry: Entry) -> Uploaded:
        source = dirty.source
        assert source is not None
        lost = False
        for attempt in range(CONFLICT_ROUNDS):
            stamp = dirty.stamp
            assert stamp is not None
            if attempt and dirty.is_written_anew:
                raise StoreUnavailable(f"{dirty.key!r} is being written anew")
            await self._announce(dirty, stamp)
            attributes = msgspec.structs.replace(entry.attributes or Attributes(), mtime_ns=stamp.mtime_ns)
            source.key, source.keep = dirty.key, await keep(self._store, dirty)
            metadata = {**foreign(source.keep), **self._described(dirty, to_metadata(Kind.FILE, attributes))}
            generation = dirty.replicas.generation
            try:
                try:
                    uploaded = await self._taken_over(dirty, metadata) if dirty.stored.resumed and not attempt else None
                    uploaded = uploaded or await self._upload(dirty, source, metadata, stamp)
                except (VersionChanged, NotFound) as exc:  # not found: an upload that is complete, or a source that is gone
                    same = await self._resolve(dirty)
                    if same is None:
                        if type(exc) is NotFound and lost:
                            raise UploadsForgotten(f"the under-store forgets uploads of {dirty.key!r}: {exc}") from None
                        lost = lost or type(exc) is NotFound
                        continue
                    uploaded = same  # but it may have been described otherwise since
                    dirty.differs((same.info.metadata or {}) != metadata and self._store.abilities.metadata)
                else:
                    if uploaded.metadata is not None:  # fixed before, maybe when the file was not complete
                        wanted = dict(metadata)
                        if "mtime" not in uploaded.metadata and not dirty.times_set:
                            wanted.pop("mtime", None)
                        dirty.differs(wanted != uploaded.metadata)
                await self._uploader.parts.give_up_open(source)  # where the store had it already
                if source.old is not None:
                    source.old = OldObject(dirty.key, uploaded.info.version, uploaded.stamp.size, uploaded.checksums)
                source.bytes.rebase(dirty.key, uploaded.info.version, uploaded.stamp.size)
                if self._replicator is not None:
                    self._replicator.release(dirty.number, generation, dirty.replicas.holders)
                return uploaded
            except ChangedMeanwhile:
                continue
            finally:
                source.bytes.end_replacement()
        raise StoreUnavailable(f"{dirty.key!r} changes again and again, here or in the under-store")

    async def _upload(self, dirty: Dirty, source: Source, metadata: Mapping[str, str], stamp: Stamp) -> Uploaded:
        """Upload the content; what may have arrived without an answer is remembered as sent by us."""
        dirty.looked_at()
        try:
            return await self._uploader.upload(source, metadata, dirty.stored.expect)
        except StoreError:  # also one that finds another version: that may be of a first try
            dirty.stored.may_have_arrived(stamp)
            raise

    def _described(self, dirty: Dirty, metadata: dict[str, str]) -> dict[str, str]:
        """Return the metadata of an object, with the write id if others may hold replicas of the file."""
        if self._replicator is None or not dirty.replicas.generation:
            return metadata
        return self._replicator.described(metadata, dirty.number, dirty.replicas.generation, dirty.key)

    def _is_of_same_file(self, dirty: Dirty, info: ObjectInfo) -> bool:
        """Whether an object is an earlier content of a file, uploaded by us or by a holder of its replica."""
        found = write_of(info.metadata, dirty.key)
        ours = self._replicator.write(dirty.number, 0) if self._replicator is not None else None
        return found is not None and ours is not None and found.file == ours.file

    async def _taken_over(self, dirty: Dirty, metadata: Mapping[str, str]) -> Uploaded | None:
        """Ask the holders of replicas if they took us for dead; returns their upload, if nothing was changed after it.

        Else the version that they uploaded is the one that the store is expected to have.
        """
        dirty.looked_at()
        stamp, source = dirty.stamp, dirty.source
        if self._replicator is None or not dirty.replicas.holders or stamp is None or source is None:
            return None
        outcome = await self._replicator.outcome(dirty.number, dirty.replicas.holders)
        if outcome is None:
            return None
        if outcome.key != dirty.key:
            await self._replicator.remove_again(outcome)  # it was renamed since
            return None
        if outcome.write.generation != dirty.replicas.generation or dirty.content_changed(dirty.noted):
            dirty.stored.expects(outcome.version)
            return None
        checksums = await self._uploader.checksums(source.bytes, stamp.size)
        with contextlib.suppress(NotFound):
            info = await self._store.head(dirty.key)
            if info.version == outcome.version and self._store.abilities.metadata:
                dirty.differs((info.metadata or {}) != metadata)
        log.info("%r was uploaded by another node that held it", dirty.key)
        return Uploaded(ObjectInfo(dirty.key, stamp.size, outcome.version, 0), checksums, stamp)

    async def _announce(self, dirty: Dirty, stamp: Stamp) -> None:
        """Note which version is about to be replaced, and by what, so that a restart can tell whether that was done."""
        if dirty.stored.expect is None:
            try:
                dirty.stored.expects((await self._store.head(dirty.key)).version)
            except NotFound:
                dirty.stored.expects(ABSENT)
        sent = dirty.stored.sent
        dirty.stored.may_have_arrived(stamp)  # what is noted from now on may be of later contents
        before, sending = self._journal.files.get(dirty.number), (stamp.mtime_ns, stamp.size)
        if before is None:
            return
        # Of a file that was never promised, a restart only asks whether the store has another version.
        expect, told = dirty.stored.expect, not before.closed or sending in ((before.stamp, before.size), before.sending)
        news = before.expect != expect or not told
        if news:
            self._journal.put_file(dirty.number, msgspec.structs.replace(before, expect=expect, sending=sending, sent=sent))
        if news or (before.closed and not self._journal.is_durable(dirty.number)):
            await self._journal.commit()

    async def _resolve(self, dirty: Dirty) -> Uploaded | None:
        """The store holds another version than expected: take note of it, after saving it if it is somebody else's."""
        source = dirty.source
        assert source is not None
        try:
            info = await self._store.head(dirty.key)
        except NotFound:
            dirty.stored.expects(ABSENT)
            source.old = None
            return None
        old_is_gone = source.old is not None and source.old.version != info.version
        if old_is_gone:
            source.old = None  # nothing can be copied from it any more
        dirty.looked_at()
        stamp = dirty.stamp
        if stamp is not None:
            checksums = await self._uploader.checksums(source.bytes, stamp.size)
            if await has_same_content(self._store, info, checksums, stamp.size):
                return Uploaded(info, checksums, stamp)  # ours, and the answer got lost; or no difference
        if info.version == dirty.stored.expect:
            if old_is_gone:
                return None
            raise StoreUnavailable(f"{dirty.key!r}: the under-store contradicts itself about its version")
        if _is_sent(dirty, info) or self._is_of_same_file(dirty, info):
            dirty.stored.expects(info.version)
            return None
        taken = await self._taken_over(dirty, info.metadata or {})
        if taken is not None or info.version == dirty.stored.expect:
            return taken  # theirs came after ours
        await self._give_way_or_save(dirty, info)
        return None

    async def _give_way_or_save(self, dirty: Dirty, info: ObjectInfo) -> None:
        """Somebody else has written the object: save theirs, as ours replaces it, or else raise `Conflict`."""
        self.conflicts += 1
        if self.fail_on_conflict:
            if dirty.source is not None:
                await self._uploader.parts.give_up_open(dirty.source)
            conflict = Conflict(f"{dirty.key!r} was written by somebody else meanwhile")
            dirty.set_aside(conflict)
            raise conflict
        saved = await self._recovered.save_object(self._store, info)
        log.warning("%r was written by somebody else meanwhile; their version is kept as %s", dirty.key, saved)
        dirty.stored.replaced_by(info.version)

    async def _push_attributes(self, dirty: Dirty, entry: Entry) -> ObjectInfo:
        if not self._store.abilities.metadata:
            return ObjectInfo(dirty.key, entry.size, entry.version, 0)
        source = dirty.source
        if source is not None:
            source.bytes.expect_replacement()
        try:
            found, info = await self._describe_object(dirty, entry)
            if source is not None:  # the new version has the same bytes
                if source.old is not None:
                    source.old = replace(source.old, key=dirty.key, version=info.version)
                source.bytes.rebase(dirty.key, info.version, found.size)
        finally:
            if source is not None:
                source.bytes.end_replacement()
        return info

    async def _describe_object(self, dirty: Dirty, entry: Entry) -> tuple[ObjectInfo, ObjectInfo]:
        """Give the object the attributes of ``entry``; returns what it was, and what it is. Raises `Replaced`.

        Servers may give a copy another version, and answers get lost: what has the attributes that were sent is ours.
        """
        known = dirty.stored.expect or entry.version
        for _ in range(CONFLICT_ROUNDS):
            try:
                kept = await self._store.examine(dirty.key)
            except NotFound:
                raise Replaced(f"{dirty.key!r} was removed by somebody else meanwhile") from None
            found = kept.info
            if found.version != known and found.metadata != dirty.stored.described and not _has(found, entry):
                raise Replaced(f"{dirty.key!r} was replaced by somebody else meanwhile")
            known = found.version
            metadata = {**(found.metadata or {}), **to_metadata(Kind.FILE, entry.attributes)}
            if not (entry.attributes and entry.attributes.xattrs):
                metadata.pop("xattr", None)
            if metadata == found.metadata:
                return found, found
            dirty.stored.describing(metadata)
            try:
                info = await self._store.copy(
                    dirty.key, dirty.key, version=found.version, metadata=metadata, size=found.size, keep=kept
                )
            except VersionChanged:
                continue
            dirty.stored.describing(None)
            return found, info
        raise StoreUnavailable(f"{dirty.key!r} changes again and again in the under-store")


def _has(info: ObjectInfo, entry: Entry) -> bool:
    """Whether an object has all the attributes of an entry, to the nanosecond of the change: nobody else wrote it."""
    wanted = to_metadata(Kind.FILE, entry.attributes)
    return "ctime" in wanted and info.size == entry.size and wanted.items() <= (info.metadata or {}).items()


def _is_sent(dirty: Dirty, info: ObjectInfo) -> bool:
    """Whether an object is from an upload of ours, or of the run that was killed, of which no answer came."""
    known = parse_attributes(info.metadata)
    return known is not None and known.mtime_ns is not None and (known.mtime_ns, info.size) in dirty.stored.sent
