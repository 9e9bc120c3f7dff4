"""Bringing what is dirty to the under-store: at once for those who wait for it, in the background for the rest.

One push of an entry at a time (`Dirty.lock`), one change of a key at a time (`Turns`): so a delete never overtakes the
upload before it, nor the other way round. A push that fails leaves the entry dirty; it is tried again, with growing
pauses, for ever: only success, an unlink, or the operator ends it. The pauses begin anew when the file is changed; `hurry`
makes the next try early, and no more than that.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

import msgspec
import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.cache.staged import Stamp
from luxfuse.cache.together import together
from luxfuse.cache.upload import ChangedMeanwhile, OldObject, Source, Uploaded, Uploader, has_same_content
from luxfuse.core import names as naming
from luxfuse.core.replicas import write_of
from luxfuse.core.writeback import LONGEST_OUTAGE_RETRY_S, LONGEST_RETRY_S, retry_delay_s
from luxfuse.errors import LuxError, NotFound, StoreError, StoreUnavailable, Unforeseen, VersionChanged
from luxfuse.index.entries import Attributes, Entry, describe
from luxfuse.index.journal import DeleteRecord, Journal, directories_of
from luxfuse.index.names import ROOT_INODE
from luxfuse.steps import reached
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.base import ABSENT
from luxfuse.vfs.attributes import parse_attributes, to_metadata
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import Conflict, Replaced, Stale
from luxfuse.vfs.keeping import foreign, keep
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.replicator import Replicator
from luxfuse.vfs.turns import Turns

log = logging.getLogger(__name__)

WRITE_BACK_DELAY_S = 1.0
"""How long a closed file waits in `async-through`: what is renamed or removed meanwhile needs fewer requests."""
POSTPONED_S = 4.0
"""How much longer it waits while others are being closed, so that pushes do not slow down who makes many files."""
CONFLICT_ROUNDS = 5
WARN_INTERVAL_S = 60.0
CONCURRENT_PUSHES = 32
MOST_PUSHES = 1024
"""With those that the bandwidth limit of a rule holds back."""
DELETE_BATCH = 500
URGENT_RETRY_S = 5.0
POLL_S = 0.25
MARKED = "marker"
"""As the version of a directory: the store has a marker object of it."""
PUSHES = 2
"""Of one file in a row: the content, and its attributes where they could not go with it."""


def _lies_in(key: str, moved: str) -> bool:
    """Whether a key is what is moved, a file or the prefix of a directory, or below it."""
    return key == moved or (moved.endswith("/") and key.startswith(moved))


class Freeze:
    """Keys that are being moved; whoever wants to change them waits."""

    def __init__(self) -> None:
        self.stuck = False
        """Whether the end depends on the store, which does not answer: then the wait has a deadline."""
        self.changed = trio.Event()

    def stick(self) -> None:
        """Give those who wait a deadline from now on."""
        self.stuck, changed, self.changed = True, self.changed, trio.Event()
        changed.set()


class WriteBack:
    """Pushes the dirty entries of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        entries: DirtyEntries,
        uploader: Uploader,
        journal: Journal,
        recovered: Recovered,
        fail_on_conflict: bool,
        nursery: trio.Nursery,
    ) -> None:
        self._namespace = namespace
        self._entries = entries
        self._uploader = uploader
        self._store = uploader.store
        self._journal = journal
        self._recovered = recovered
        self.fail_on_conflict = fail_on_conflict
        self._nursery = nursery
        self._rng = random.Random()  # noqa: S311 (it spreads retries)
        namespace.is_doomed = self._is_doomed
        self._due: dict[Dirty, float] = {}
        self._queue: list[tuple[float, int, Dirty]] = []
        """Heap of what is due when; an item counts if `_due` says the same."""
        self._serial = itertools.count()
        self._quiet_s = 0.0
        """When it is to be thought that nobody makes files just now."""
        self._pushing: set[Dirty] = set()
        self._deleting: set[str] = set()
        self._deletes_due: dict[str, float] = {}
        self._delete_errors: dict[str, StoreError] = {}
        self._delete_failures: dict[str, int] = {}
        """How often the delete of a key has failed, one time after the other."""
        self._places: dict[str, tuple[int, bytes]] = {}
        self._turns: Turns[str] = Turns()
        """To change what the store has under a key."""
        self._wake = trio.Event()
        self.urgent = False
        """Whether the write-back delay is left out, and pauses after failures are short (draining)."""
        self._warn_again_s = 0.0
        self.failures = 0
        self.conflicts = 0
        self._frozen: dict[str, Freeze] = {}
        self.replication: Replicator | None = None
        """Where other nodes hold what was promised, and may have brought it to the store while they took us for dead."""
        self.is_read: Callable[[str], bool] = lambda _key: False
        """Set by the daemon: whether a removed object is still read by somebody who has it open."""
        self.on_new_version: Callable[[Dirty, Entry, str], None] = lambda _dirty, _row, _old: None
        """Set by the writer: an object has another version, though the same content, than the one given."""
        self.on_pushed: Callable[[Dirty], None] = lambda _dirty: None
        """Set by the writer: an entry is in the store; publishes it if nobody writes to it any more."""
        self.complete: Callable[[Dirty], Awaitable[None]]
        """Set by the writer: brings what a file needs of an object into its staging file, as that is about to go."""
        self.secure: Callable[[Dirty], Awaitable[None]]
        """Set by the writer: makes what there is of a file durable here, as what was promised of it last is about to go."""

    # -- now

    async def push(self, dirty: Dirty) -> None:
        """Bring an entry to the store, unless it is there. Raises `StoreError`, OSError; it then stays dirty."""
        async with dirty.lock:
            if dirty.conflict is not None and dirty.place is not None:
                raise dirty.conflict
            try:
                pushes = 0
                while dirty.must_push and pushes < PUSHES:
                    await self.thawed(dirty.key)
                    key = dirty.key
                    async with self._turns.of([key]):
                        if key == dirty.key:  # else it was renamed meanwhile
                            await self.spare(key, dirty)
                        if key == dirty.key and dirty.must_push:
                            await self._push(dirty)
                            pushes += 1
            except (LuxError, OSError) as exc:
                if dirty.place is not None:  # else it was removed meanwhile
                    dirty.tries.refused(exc if isinstance(exc, LuxError) else StoreError(str(exc)))
                    self.failures += 1
                    raise
            dirty.pushed()
        self.on_pushed(dirty)

    async def landed(self, dirty: Dirty) -> None:
        """Wait until a push of the entry that is on its way is over."""
        async with dirty.lock:
            pass
        self.on_pushed(dirty)  # which came to nothing while we had the lock

    @contextlib.contextmanager
    def freeze(self, *prefixes: str) -> Iterator[Freeze]:
        """Push and remove nothing below these keys for the block: they are being moved."""
        frozen = Freeze()
        for prefix in prefixes:
            self._frozen[prefix] = frozen
        try:
            yield frozen
        finally:
            for prefix in prefixes:
                del self._frozen[prefix]
            frozen.changed.set()
            self._wake.set()

    async def thawed(self, key: str) -> None:
        """Wait until nothing that the key lies in is being moved. Raises `StoreUnavailable` if that waits for the store."""
        while (frozen := next((f for p, f in self._frozen.items() if _lies_in(key, p)), None)) is not None:
            with trio.move_on_after(self._store.timeout_s if frozen.stuck else math.inf) as scope:
                await frozen.changed.wait()
            if scope.cancelled_caught:
                raise StoreUnavailable(f"{key!r} is part of an exchange that failed and cannot be undone yet")

    async def settled(self, *prefixes: str) -> None:
        """Wait until no push below ``prefixes`` is on its way and every delete there is made. Raises `StoreError`."""
        while True:
            pushing = next((d for d in self._entries if d.key.startswith(prefixes) and d.lock.locked()), None)
            if pushing is not None:
                await self.landed(pushing)
                continue
            keys = [key for key in self._journal.deletes if key.startswith(prefixes)]
            if not keys:
                return
            places = [self._places.get(key) for key in keys]
            await self.delete_now(keys)
            for key, place in zip(keys, places, strict=True):
                if place is not None:
                    self._places.setdefault(key, place)
                self._deleted(key)

    async def spare(self, key: str, changed: Dirty | None = None) -> None:
        """What the store has under a key is about to go: see to it that no other file needs it. Raises `StoreError`."""
        for dirty in self._entries.based_on(key):
            if dirty is not changed:
                await self.complete(dirty)
        await self.secure_stored(key, changed)

    async def secure_stored(self, key: str, changed: Dirty | None = None) -> None:
        """The part of `spare` that is about what was promised. Raises OSError."""
        for dirty in self._entries.stored_under(key):
            record = self._journal.files.get(dirty.number)
            if dirty is not changed and record is not None and not record.closed:
                await self.secure(dirty)

    async def _push(self, dirty: Dirty) -> None:
        assert dirty.place is not None
        row = self._namespace.peek(*dirty.place)
        assert row is not None
        dirty.differs(False)
        reached("push.begun")
        try:
            if dirty.source is not None and dirty.content_changed(dirty.uploaded):
                uploaded = await self._push_content(dirty, row)
                info = uploaded.info
                dirty.has_uploaded(uploaded)
            elif dirty.kind is Kind.FILE or (dirty.kind is Kind.SYMLINK and not dirty.target):
                info = await self._push_attributes(dirty, row)
            elif dirty.kind is Kind.DIRECTORY:
                info = await self._push_marker(dirty, row)
            else:
                kept = await keep(self._store, dirty)
                metadata = {**foreign(kept), **to_metadata(dirty.kind, row.attributes)}
                info = await self._store.put(dirty.key, dirty.target, metadata, keep=kept)
        except Replaced:
            self._namespace.expire(dirty.inode)
            raise
        except BaseException:
            dirty.differs(True)
            raise
        reached("push.stored")
        dirty.stored.pushed(dirty.key, info.version)
        self._note_pushed(dirty, info)
        reached("push.noted")

    def _note_pushed(self, dirty: Dirty, info: ObjectInfo) -> None:
        if dirty.place is None:
            return
        row = self._namespace.peek(*dirty.place)
        if row is None or row.inode != dirty.inode:
            return
        old_version = row.version
        row.version = info.version if dirty.kind is not Kind.DIRECTORY else MARKED
        if dirty.uploaded is not None:
            row.size = dirty.uploaded.size
            row.mtime_ns = dirty.uploaded.mtime_ns
            row.attributes = msgspec.structs.replace(row.attributes or Attributes(), mtime_ns=dirty.uploaded.mtime_ns)
        row.checked_s = self._namespace.now_s()
        describe(row, row.attributes, info.mtime_ns, row.checked_s)
        if row.attributes is not None and self._store.abilities.metadata:
            self._namespace.on_described(None, row.attributes)
        self._namespace.put(*dirty.place, row)
        self._note_expected(dirty, row)
        if dirty.source is None and old_version and row.version != old_version:
            self.on_new_version(dirty, row, old_version)

    def _note_expected(self, dirty: Dirty, row: Entry) -> None:
        """Tell the journal what the store has: it stays there for as long as the file is open."""
        before = self._journal.files.get(dirty.number)
        if before is None:
            return
        record = dirty.record(row.attributes)
        record.has_inline = before.has_inline and dirty.kind is not Kind.FILE
        if dirty.uploaded is not None:  # a program may have written to the file since: its mtime will tell
            record.content, record.stamp, record.size = False, dirty.uploaded.mtime_ns, dirty.uploaded.size
        self._journal.put_file(dirty.number, record)

    async def _push_content(self, dirty: Dirty, row: Entry) -> Uploaded:
        source = dirty.source
        assert source is not None
        lost = False
        for attempt in range(CONFLICT_ROUNDS):
            stamp = dirty.stamp
            assert stamp is not None
            await self._announce(dirty, stamp)
            attributes = msgspec.structs.replace(row.attributes or Attributes(), mtime_ns=stamp.mtime_ns)
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
                            raise StoreUnavailable(f"the under-store forgets uploads of {dirty.key!r}: {exc}") from None
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
                await self._uploader.give_up_open(source)  # where the store had it already
                if source.old is not None:
                    source.old = OldObject(dirty.key, uploaded.info.version, uploaded.stamp.size, uploaded.checksums)
                source.bytes.rebase(dirty.key, uploaded.info.version, uploaded.stamp.size)
                if self.replication is not None:
                    self.replication.release(dirty.number, generation, dirty.replicas.holders)
                return uploaded
            except ChangedMeanwhile:
                continue
            finally:
                source.bytes.end_replacement()
        raise StoreUnavailable(f"{dirty.key!r} changes again and again, here or in the under-store")

    async def _upload(self, dirty: Dirty, source: Source, metadata: Mapping[str, str], stamp: Stamp) -> Uploaded:
        """Upload the content; what may have arrived without an answer is remembered as sent by us."""
        try:
            return await self._uploader.upload(source, metadata, dirty.stored.expect)
        except StoreError:  # also one that finds another version: that may be of a first try
            dirty.stored.may_have_arrived(stamp)
            raise

    def _described(self, dirty: Dirty, metadata: dict[str, str]) -> dict[str, str]:
        """Return the metadata of an object, with the write id if others may hold replicas of the file."""
        if self.replication is None or not dirty.replicas.generation:
            return metadata
        return self.replication.described(metadata, dirty.number, dirty.replicas.generation, dirty.key)

    def _is_of_same_file(self, dirty: Dirty, info: ObjectInfo) -> bool:
        """Whether an object is an earlier content of a file, by us or by somebody who held it."""
        found = write_of(info.metadata, dirty.key)
        ours = self.replication.write(dirty.number, 0) if self.replication is not None else None
        return found is not None and ours is not None and found.file == ours.file

    async def _taken_over(self, dirty: Dirty, metadata: Mapping[str, str]) -> Uploaded | None:
        """Ask the holders of replicas if they took us for dead; returns what they brought up, if that is all there is.

        Where it is not, what they brought up is what the store is expected to have.
        """
        stamp, source = dirty.stamp, dirty.source
        if self.replication is None or not dirty.replicas.holders or stamp is None or source is None:
            return None
        outcome = await self.replication.outcome(dirty.number, dirty.replicas.holders)
        if outcome is None:
            return None
        if outcome.key != dirty.key:
            await self.replication.remove_again(outcome)  # it was renamed since
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
        """Note what is about to be replaced, and by what, so that a restart can tell whether that was done."""
        if dirty.stored.expect is None:
            try:
                dirty.stored.expects((await self._store.head(dirty.key)).version)
            except NotFound:
                dirty.stored.expects(ABSENT)
        before, sending = self._journal.files.get(dirty.number), (stamp.mtime_ns, stamp.size)
        if before is None:
            return
        # Of what was never promised, a restart only asks whether the store has another version.
        expect, told = dirty.stored.expect, not before.closed or sending in ((before.stamp, before.size), before.sending)
        news = before.expect != expect or not told
        if news:
            self._journal.put_file(dirty.number, msgspec.structs.replace(before, expect=expect, sending=sending))
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
        self.conflicts += 1
        if self.fail_on_conflict:
            await self._uploader.give_up_open(source)
            conflict = Conflict(f"{dirty.key!r} was written by somebody else meanwhile")
            dirty.set_aside(conflict)
            raise conflict
        saved = await self._recovered.save_object(self._store, info)
        log.warning("%r was written by somebody else meanwhile; their version is kept as %s", dirty.key, saved)
        dirty.stored.replaced_by(info.version)
        return None

    async def _push_attributes(self, dirty: Dirty, row: Entry) -> ObjectInfo:
        if not self._store.abilities.metadata:
            return ObjectInfo(dirty.key, row.size, row.version, 0)
        source = dirty.source
        if source is not None:
            source.bytes.expect_replacement()
        try:
            found, info = await self._describe_object(dirty, row)
            if source is not None:  # the new version has the same bytes
                if source.old is not None:
                    source.old = replace(source.old, key=dirty.key, version=info.version)
                source.bytes.rebase(dirty.key, info.version, found.size)
        finally:
            if source is not None:
                source.bytes.end_replacement()
        return info

    async def _describe_object(self, dirty: Dirty, row: Entry) -> tuple[ObjectInfo, ObjectInfo]:
        """Give the object the attributes of ``row``; returns what it was, and what it is. Raises `Replaced`.

        Servers may give a copy another version, and answers get lost: what has the attributes that were sent is ours.
        """
        known = dirty.stored.expect or row.version
        for _ in range(CONFLICT_ROUNDS):
            try:
                kept = await self._store.examine(dirty.key)
            except NotFound:
                raise Replaced(f"{dirty.key!r} was removed by somebody else meanwhile") from None
            found = kept.info
            if found.version != known and found.metadata != dirty.stored.described and not _has(found, row):
                raise Replaced(f"{dirty.key!r} was replaced by somebody else meanwhile")
            known = found.version
            metadata = {**(found.metadata or {}), **to_metadata(Kind.FILE, row.attributes)}
            if not (row.attributes and row.attributes.xattrs):
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

    async def _push_marker(self, dirty: Dirty, row: Entry) -> ObjectInfo:
        """Make the marker of a directory, or change its attributes; content that somebody has given it stays."""
        key, metadata = dirty.key, to_metadata(Kind.DIRECTORY, row.attributes)
        able = self._store.abilities
        if able.hierarchical:
            return await self._store.put(key, b"", metadata)
        expect = ABSENT if able.conditional else None
        for attempt in range(CONFLICT_ROUNDS):
            if attempt or row.version == MARKED or expect is None:
                try:
                    found = await self._store.head(key)
                except NotFound:
                    found = ObjectInfo(key, 0, ABSENT, 0)
                expect = found.version if able.conditional else None
                if found.size:
                    metadata = {**(found.metadata or {}), **metadata}
                    return await self._store.copy(key, key, version=found.version, metadata=metadata, size=found.size)
            try:
                return await self._store.put(key, b"", metadata, expect=expect)
            except VersionChanged:
                continue
        raise StoreUnavailable(f"{key!r} changes again and again in the under-store")

    async def _spare_content(self, keys: list[str]) -> None:
        """Forget the deletes of directories whose objects have content by now. Raises `StoreError`."""
        limiter = trio.CapacityLimiter(CONCURRENT_PUSHES)

        async def look(key: str) -> None:
            async with limiter:
                if size := await self.content_of_marker(key):
                    log.warning("the object %r has %d bytes: it is not removed with its directory", key, size)
                    self._deleted(key)

        async with together() as start:
            for key in keys:
                if key.endswith("/"):
                    start(look, key)

    async def content_of_marker(self, key: str) -> int:
        """Return how many bytes the object of a directory has, which removing the directory would destroy."""
        if not key.endswith("/") or self._store.abilities.hierarchical:
            return 0
        try:
            return (await self._store.head(key)).size
        except NotFound:
            return 0

    # -- later

    def schedule(self, dirty: Dirty, delay_s: float = WRITE_BACK_DELAY_S) -> None:
        """Push an entry in the background after a while."""
        idle = not self._due and not self._deletes_due
        now = trio.current_time()
        self._quiet_s = now + WRITE_BACK_DELAY_S
        if not self._failed_as_it_is(dirty):
            self._put_due(dirty, now + (0.0 if self.urgent else delay_s))
        elif dirty not in self._due and dirty not in self._pushing:  # else its next try is planned, or will be
            self._put_due(dirty, now + self._pause_s(dirty))
        if idle or self.urgent:  # else `run` looks again soon
            self._wake.set()

    def _put_due(self, dirty: Dirty, due: float) -> None:
        self._due[dirty] = due
        heapq.heappush(self._queue, (due, next(self._serial), dirty))

    def is_under_way(self, dirty: Dirty) -> bool:
        """Whether an entry is being pushed, or is to be."""
        return dirty in self._due or dirty in self._pushing or dirty.lock.locked()

    def forget(self, dirty: Dirty) -> None:
        """An entry need not be pushed any more."""
        self._due.pop(dirty, None)

    async def run(self) -> None:
        """Push what is due, until cancelled."""
        while True:
            self._start_due()
            with trio.move_on_after(POLL_S if self._due or self._deletes_due else 3600):
                await self._wake.wait()
            self._wake = trio.Event()

    def _start_due(self) -> None:
        now = trio.current_time()
        until = now - POSTPONED_S if now < self._quiet_s and not self.urgent else now
        most = min(CONCURRENT_PUSHES + self._store.held_back("put"), MOST_PUSHES)
        while self._queue and len(self._pushing) < most:
            due, _, dirty = self._queue[0]
            counts = self._due.get(dirty) == due
            if counts and due > until:
                break
            heapq.heappop(self._queue)
            if counts and dirty in self._pushing:
                self._put_due(dirty, now + POLL_S)
            elif counts:
                del self._due[dirty]
                self._pushing.add(dirty)
                self._nursery.start_soon(self._push_quietly, dirty)
        if not self._deleting:
            ready = (key for key, due in self._deletes_due.items() if due <= now and self._may_delete(key))
            self._deleting = set(itertools.islice(ready, DELETE_BATCH))
            if self._deleting:
                self._nursery.start_soon(self._delete_quietly, list(self._deleting))

    def _failed_as_it_is(self, dirty: Dirty) -> bool:
        """Whether the last try failed, and nothing was changed since."""
        return dirty.tries.attempts > 0 and dirty.tries.have_failed(dirty.key, dirty.stamp)

    def _pause_s(self, dirty: Dirty) -> float:
        """Return how long to wait before the next try. An outage costs little to be looked at, and somebody may wait."""
        outage = isinstance(dirty.tries.error, StoreUnavailable) and not self._store.reachable
        longest_s = URGENT_RETRY_S if outage and self.urgent else LONGEST_OUTAGE_RETRY_S if outage else LONGEST_RETRY_S
        return retry_delay_s(dirty.tries.attempts, longest_s, self._rng)

    @property
    def _longest_delete_retry_s(self) -> float:
        return URGENT_RETRY_S if self.urgent else LONGEST_RETRY_S

    def _note_failed(self, dirty: Dirty, error: LuxError) -> None:
        """Take note of a try in the background that failed, and plan the next one, later the more have failed."""
        dirty.tries.refused_later(error, dirty.key, dirty.stamp)
        if not dirty.finished and dirty.place is not None:
            self._put_due(dirty, trio.current_time() + self._pause_s(dirty))
        if dirty.tries.count() == 1:
            self._warn("%r cannot be brought to the under-store yet: %s", dirty.key, error)

    def _warn(self, text: str, *arguments: object) -> None:
        """Log a warning, but not one for each file of an outage; `status` has the numbers."""
        now = trio.current_time()
        level = logging.WARNING if now >= self._warn_again_s else logging.INFO
        self._warn_again_s = max(self._warn_again_s, now + WARN_INTERVAL_S if level == logging.WARNING else 0.0)
        log.log(level, text, *arguments)

    async def _push_quietly(self, dirty: Dirty) -> None:
        if dirty.source is not None:
            dirty.source.retrying = dirty.tries.attempts > 0
        try:
            await self.push(dirty)
        except (Conflict, Replaced):
            self.on_pushed(dirty)  # nothing is tried again
        except (LuxError, OSError) as exc:
            self._note_failed(dirty, exc if isinstance(exc, LuxError) else StoreError(str(exc)))
        except Exception as exc:
            log.exception("pushing %r failed in an unexpected way", dirty.key)
            self._note_failed(dirty, Unforeseen(f"internal error ({type(exc).__name__}: {exc}), see the log"))
        finally:
            if dirty.source is not None:
                dirty.source.retrying = False
            self._pushing.discard(dirty)
            self._wake.set()

    # -- deletes

    def pending_delete(self, key: str) -> DeleteRecord | None:
        """Return the delete that is still to be made of a key."""
        return self._journal.deletes.get(key)

    def _is_doomed(self, parent: int, name: bytes) -> bool:
        """Whether a file, a directory or a symlink of this name is still to be removed from the store."""
        if not self._journal.deletes:
            return False
        try:
            key = self._namespace.key(parent, name, Kind.FILE)
        except Stale:
            return False
        if key + "/" in self._journal.deletes_below:  # else the store would still show a directory that is gone
            return True
        return any(each in self._journal.deletes for each in (key, key + "/", key + naming.SYMLINK_SUFFIX))

    def delete_later(self, key: str, place: tuple[int, bytes], version: str | None, after: int = 0) -> None:
        """Remove an object in the background; its name, which the caller holds, is settled then."""
        self._journal.put_delete(key, DeleteRecord(version, after, time.time()))
        self.resume_delete(key, place)

    def hold_below(self, prefix: str, directory: int) -> None:
        """A directory was made where one was removed: hold the names in it of what is still to be deleted."""
        if prefix not in self._journal.deletes_below:
            return
        for key in self._journal.deletes:
            first, _, deeper = key[len(prefix) :].partition("/")
            if not key.startswith(prefix) or not first:
                continue
            name = (first if deeper else first.removesuffix(naming.SYMLINK_SUFFIX)).encode()
            self._namespace.hold(None, directory, name)
            if not deeper:
                self._places[key] = directory, name

    def resume_delete(self, key: str, place: tuple[int, bytes] | None) -> None:
        """Carry on with a delete of the journal; ``place``: the name that is held, if it is not gone with its directory."""
        if place is not None:
            self._places[key] = place
        self._deletes_due[key] = trio.current_time() + (0.0 if self.urgent else WRITE_BACK_DELAY_S / 4)
        self._wake.set()

    def reuse(self, key: str) -> str | None:
        """A key is about to be used anew: forget its delete; returns what the store is then expected to have under it."""
        record = self._journal.deletes.get(key)
        if record is None:
            return ABSENT
        in_flight = key in self._deleting
        self._journal.drop_delete(key)
        self._settle_above(key)
        self._deletes_due.pop(key, None)
        self._delete_failures.pop(key, None)
        self._delete_errors.pop(key, None)
        self._places.pop(key, None)
        return None if in_flight else record.version

    async def copy(self, source: str, target: str, version: str | None, size: int) -> ObjectInfo:
        """Copy an object inside the store. Raises `StoreError`."""
        async with self._turns.of((source, target)):
            await self.spare(target)
            return await self._store.copy(source, target, version=version, size=size)

    async def delete_now(self, keys: list[str]) -> None:
        """Remove objects. Raises `StoreError`: the first failure."""
        async with self._turns.of(keys):
            for key in keys:
                await self.spare(key)
            failures = await self._store.delete(keys)
        for error in failures.values():
            raise error

    async def delete_noted(self, key: str) -> None:
        """Make a delete of the journal now; where the store does not take it, it is tried again later."""
        try:
            async with self._turns.of([key]):
                if key in self._journal.deletes:
                    await self.spare(key)
                    for error in (await self._store.delete([key])).values():
                        raise error
                    self._deleted(key)
        except StoreError as exc:
            log.warning("%r was replaced, but its object cannot be removed yet: %s", key, exc)
            self._delete_errors[key] = exc

    def delete_error(self, key: str) -> StoreError | None:
        """Return what the last try to remove an object failed with."""
        return self._delete_errors.get(key)

    def _may_delete(self, key: str) -> bool:
        record = self._journal.deletes.get(key)
        if record is None or self.is_read(key):
            return False
        return not self._journal.is_waiting(record)

    async def _delete_quietly(self, keys: list[str]) -> None:
        delay_s = 0.0
        try:
            async with self._turns.of(keys):
                wanted = [key for key in keys if key in self._journal.deletes]
                for key in wanted:
                    await self.spare(key)
                await self._spare_content(wanted)
                wanted = [key for key in wanted if key in self._journal.deletes]
                # Children before their directories, where those exist by themselves.
                failures = await self._store.delete(sorted(wanted, reverse=True)) if wanted else {}
                reached("delete.stored")
                for key in wanted:
                    if key not in failures:
                        self._deleted(key)
                for key, error in failures.items():
                    log.info("%r cannot be removed yet: %s", key, error)
                    self._delete_failed(key, error)
        except StoreError as exc:
            log.info("%d objects cannot be removed yet: %s", len(keys), exc)
            self.failures += 1
            for key in keys:
                self._delete_failed(key, exc)
        except Exception:
            log.exception("removing objects failed in an unexpected way")
            delay_s = LONGEST_RETRY_S
        finally:
            if delay_s:
                for key in keys:
                    if key in self._deletes_due:
                        self._deletes_due[key] = trio.current_time() + delay_s
            self._deleting = set()
            self._wake.set()

    def _delete_failed(self, key: str, error: StoreError) -> None:
        """Take note of a delete that failed, and plan the next try, later the more have failed."""
        if key not in self._deletes_due:
            return  # the name was made anew meanwhile
        failures = self._delete_failures[key] = self._delete_failures.get(key, 0) + 1
        self._delete_errors[key] = error
        self._deletes_due[key] = trio.current_time() + retry_delay_s(failures, self._longest_delete_retry_s, self._rng)

    def _deleted(self, key: str) -> None:
        self._deletes_due.pop(key, None)
        self._delete_errors.pop(key, None)
        self._delete_failures.pop(key, None)
        if self._journal.deletes.get(key) is None:
            return
        self._journal.drop_delete(key)
        reached("delete.dropped")
        place = self._places.pop(key, None)
        if place is not None:
            entry = self._namespace.peek(*place)
            if entry is None or self._entries.get(entry.inode) is None:
                self._namespace.settle(entry.inode if entry is not None else None, *place)
        self._settle_above(key)

    def _settle_above(self, key: str) -> None:
        """Directories were held for the sake of a delete below: let go of those where nothing more is to be deleted."""
        parent = ROOT_INODE
        for prefix in directories_of(key):
            name = prefix[:-1].rpartition("/")[2].encode()
            entry = self._namespace.peek(parent, name)
            if prefix not in self._journal.deletes_below and (entry is None or self._entries.get(entry.inode) is None):
                self._namespace.settle(None, parent, name)
            if entry is None or entry.kind is not Kind.DIRECTORY:
                return
            parent = entry.inode

    # -- all of it

    @property
    def pending(self) -> int:
        """Number of entries and deletes that the store does not have yet."""
        return sum(1 for d in self._entries if d.must_push or d in self._pushing) + len(self._journal.deletes)

    def hurry(self, prefix: str = "", *, failed: bool = True) -> None:
        """Push everything at or below a key at once, as far as it is closed; ``failed``: also what has failed lately."""
        now = trio.current_time()
        overdue = now - POSTPONED_S
        for dirty, due in list(self._due.items()):
            if due > overdue and is_at_or_below(dirty.key, prefix) and (failed or dirty.tries.error is None):
                self._put_due(dirty, overdue)
        for key, due in self._deletes_due.items():
            if due > now and is_at_or_below(key, prefix) and (failed or key not in self._delete_errors):
                self._deletes_due[key] = now
        self._wake.set()


def _has(info: ObjectInfo, row: Entry) -> bool:
    """Whether an object has all the attributes of an entry, to the nanosecond of the change: nobody else wrote it."""
    wanted = to_metadata(Kind.FILE, row.attributes)
    return "ctime" in wanted and info.size == row.size and wanted.items() <= (info.metadata or {}).items()


def _is_sent(dirty: Dirty, info: ObjectInfo) -> bool:
    """Whether an object is what we, or the run that was killed, tried to bring up, and never heard of again."""
    known = parse_attributes(info.metadata)
    return known is not None and known.mtime_ns is not None and (known.mtime_ns, info.size) in dirty.stored.sent


def is_at_or_below(key: str, path: str) -> bool:
    """Whether an object's key is that of a file, directory or symlink ``path``, or of something in it; "": everything."""
    if not path or key == path:
        return True
    return key.startswith(path + "/") or key == path + naming.SYMLINK_SUFFIX
