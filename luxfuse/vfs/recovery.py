"""What a restart makes of the journal, before the tree answers.

1. Multipart uploads that were open are aborted, but those of which parts have arrived of a file that is to go up.
2. Moves are finished: what is still under the old key is copied and removed. Copying is repeated, so a move that was
   cut short anywhere ends as if it had not been.
3. Deletes are carried on: their names stay gone, and so do directories of which the store has nothing else.
4. What the store can never hold, because its key is too long, is kept in the recovered directory.
5. Files that were closed or synced are dirty again, and go up. Those that were not have never been promised to anybody:
   their content is kept in the recovered directory, and the name shows what the store has.

The journal alone is believed: names that the index lacks are made anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from luxfuse.cache.open_uploads import best
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.cache.staged import StagedBytes
from luxfuse.cache.together import together
from luxfuse.cache.upload_source import Source
from luxfuse.core import names as naming
from luxfuse.errors import NotFound, StoreError, VersionChanged
from luxfuse.index.entries import Entry
from luxfuse.index.journal import DeleteRecord, FileRecord, Journal, OperationRecord, directories_of
from luxfuse.index.names import ROOT_INODE, Names
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import ABSENT, PAGE_BYTES, Kind, ObjectInfo, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.deletes import DELETE_BATCH
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.dirty_fields import Replicas, Stored
from luxfuse.vfs.moves import MOVE, MOVE_DIRECTORY, SWAP
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.pushing import MARKED
from luxfuse.vfs.replicator import Replicator
from luxfuse.vfs.writeback import WriteBack
from luxfuse.workers import Threads

log = logging.getLogger(__name__)

IO_THREADS = 4
CONCURRENT_HEADS = 16
KEYS = {"source", "target", "replaced", "first", "second", "between"}
"""The arguments of operations that are keys."""
ABORT_DEADLINE_S = 5.0


@dataclass(slots=True)
class Outcome:
    """How many files go up now, deletes and moves were found, and files are kept in the recovered directory.

    ``lost``: files whose content was promised, but is not on the disk any more: somebody has emptied the cache directory.
    """

    files: int = 0
    deletes: int = 0
    moves: int = 0
    recovered: int = 0
    lost: int = 0
    refused: int = 0
    """Files, directories and symlinks that the store can never hold."""


class Recovery:
    """Reads the journal of the last run once, at the beginning of this one."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        entries: DirtyEntries,
        journal: Journal,
        staging: Staging,
        recovered: Recovered,
        writeback: WriteBack,
        cache: PageCache,
        store: Store,
        limits: naming.KeyLimits,
        replicator: Replicator | None,
    ) -> None:
        """``replicator``: of the nodes that may hold what was promised, and is not here any more."""
        self._namespace = namespace
        self._names = names
        self._entries = entries
        self._journal = journal
        self._staging = staging
        self._recovered = recovered
        self._writeback = writeback
        self._deletes = writeback.deletes
        self._cache = cache
        self._store = store
        self._limits = limits
        self._threads = Threads(IO_THREADS)
        self._replicator = replicator

    async def run(self) -> Outcome:
        """Do all of it. Raises `StoreError` if a move cannot be finished now, OSError if the disk fails."""
        outcome = Outcome()
        # The moves that an exchange is made of before the exchange, which makes those that are missing.
        for number, operation in sorted(self._journal.operations.items(), key=lambda item: (item[1].kind == SWAP, item[0])):
            await self._finish(number, operation)
            reached("recover.moved")
            self._rekey(operation)
            self._journal.drop_operation(number)
            outcome.moves += 1
        await self._move_what_was_not_closed()
        outcome.deletes = len(self._journal.deletes)
        await self._delete_what_waits_for_nothing()
        # Directories first, outer ones before inner ones: what is in them may have been changed before they were made.
        records = self._journal.files.items()
        for number, record in sorted(records, key=lambda r: (r[1].kind is not Kind.DIRECTORY, r[1].key, r[0])):
            if refusal := self._refusal(record):
                outcome.refused += 1
                await self._give_up(number, record, refusal)
            elif await self._resume(number, record):
                reached("recover.resumed")
            else:
                if record.closed and not await self._was_pushed(record):
                    outcome.lost += 1
                    log.error("%r was not in the under-store yet, and is not in the cache directory any more", record.key)
                    if record.holders and self._replicator is not None:
                        self._replicator.note_lost(number)
                        continue
                outcome.recovered += await self._set_aside(number, record)
                reached("recover.set-aside")
        await self._delete_what_waits_for_nothing()
        gone = await self._gone_directories()
        for key in sorted(self._journal.deletes, reverse=True):  # what is in a directory before the directory
            self._resume_delete(key, gone)
            reached("recover.delete")
        await self._show_others(gone)
        outcome.files = sum(dirty.must_push for dirty in self._entries)
        known = {dirty.number for dirty in self._entries}
        for number in list(self._staging.stored()):
            if number not in known and self._staging.was_retired(number):
                self._staging.remove(number)
            elif number not in known:
                outcome.recovered += await self._keep(number, f"unknown-{number:x}")
        await self._journal.commit()
        reached("recover.committed")
        return outcome

    async def abort_uploads(self) -> None:
        """Drop uploads of the last run that are not gone on with; what cannot be dropped now is left to the next."""
        resumed = {(d.source.open.key, d.source.open.upload) for d in self._entries if d.source and d.source.open}
        for key, upload in self._journal.uploads - resumed:
            try:
                with trio.move_on_after(ABORT_DEADLINE_S):
                    await self._store.abort_upload(key, upload)
                    reached("recover.aborted")
                    self._journal.drop_upload(key, upload)
            except StoreError as exc:
                log.info("an unfinished upload of %r could not be aborted: %s", key, exc)

    async def _move_what_was_not_closed(self) -> None:
        """Files that were renamed while they were open for writing do not go up: move what the store has of them."""
        for number, record in list(self._journal.files.items()):
            if record.closed or record.stored is None:
                continue
            if await self._is_there(record):
                self._journal.drop_file(number)
                continue
            source, version = record.stored
            await self._move(source, record.key, version or None)
            self._journal.put_file(number, msgspec.structs.replace(record, expect=None, doomed=False, stored=None))
            self._journal.drop_delete(source)
            self._forget_listing(source)
            reached("recover.moved-unclosed")

    async def _is_there(self, record: FileRecord) -> bool:
        """Whether the store has another object than expected: it got the file before the journal said that it is closed."""
        if record.expect is None:
            return False  # it is found out and noted before the upload
        try:
            return (await self._store.head(record.key)).version != record.expect
        except NotFound:
            return False

    async def _delete_what_waits_for_nothing(self) -> None:
        """Make as many deletes as can be made now, so that their names need not be held."""
        ready = sorted((k for k, d in self._journal.deletes.items() if not self._journal.is_waiting(d)), reverse=True)
        try:
            for start in range(0, len(ready), DELETE_BATCH):
                batch = ready[start : start + DELETE_BATCH]
                ours = await self._not_replaced(batch)
                failures = await self._store.delete(ours) if ours else {}
                reached("recover.deleted")
                for key in set(batch) - failures.keys():
                    self._journal.drop_delete(key)
                    self._forget_listing(key)
        except StoreError as exc:
            log.info("deletes of the last run cannot be made yet: %s", exc)

    async def _not_replaced(self, keys: list[str]) -> list[str]:
        """Leave out what somebody else has written anew since it was removed here, and markers with content."""
        replaced: set[str] = set()
        limiter = trio.CapacityLimiter(CONCURRENT_HEADS)

        async def ask(key: str, version: str) -> None:
            async with limiter:
                with contextlib.suppress(NotFound):
                    info = await self._store.head(key)
                    if info.size if key.endswith("/") else info.version != version:
                        replaced.add(key)

        async with together() as start:
            for key in keys:
                version = self._journal.deletes[key].version
                if (key.endswith("/") and not self._store.abilities.hierarchical) or (version and not key.endswith("/")):
                    start(ask, key, version or "")
        return [key for key in keys if key not in replaced]

    async def _gone_directories(self) -> set[str]:
        """Return the key prefixes of directories of which the store has nothing but what is to be deleted."""
        gone: set[str] = set()
        changed = {prefix for d in self._entries for prefix in (*directories_of(d.key), d.key)}
        try:
            for prefix in sorted(self._journal.deletes_below):  # outer ones first
                if prefix not in changed and (_above(prefix) in gone or await self._has_only_doomed(prefix)):
                    gone.add(prefix)
        except StoreError as exc:
            log.info("which directories are left below names that are to be removed cannot be asked for yet: %s", exc)
        return gone

    async def _has_only_doomed(self, prefix: str) -> bool:
        async with contextlib.aclosing(self._store.list_all(prefix)) as pages:
            async for page in pages:
                if any(info.key not in self._journal.deletes for info in page.objects):
                    return False
        return True

    def _resume_delete(self, key: str, gone: set[str]) -> None:
        above = next((prefix for prefix in directories_of(key) if prefix in gone), None)
        if above is not None:
            place = self._place(above)
            self._namespace.hold(None, *place)
            self._erase(*place, above)
            self._deletes.resume(key, None)
            return
        place = self._place(key)
        self._namespace.hold(None, *place)
        self._erase(*place, key)
        self._deletes.resume(key, place)

    async def _show_others(self, gone: set[str]) -> None:
        """The names of deletes are held, so that nobody asks for them: show what else stands for one in the store.

        What the index has may be older than the last commits before a kill.
        """
        try:
            for key in self._journal.deletes:
                if gone.intersection(directories_of(key)):
                    continue
                parent, name = self._place(key)
                entry = self._names.get(parent, name)
                if entry is None or self._entries.get(entry.inode) is None:
                    await self._show(parent, name, entry)
        except StoreError as exc:
            log.info("what stands for names that are to be removed cannot be asked for yet: %s", exc)

    async def _show(self, parent: int, name: bytes, known: Entry | None) -> None:
        for kind in (Kind.DIRECTORY, Kind.FILE, Kind.SYMLINK):
            key = self._namespace.key(parent, name, kind)
            if key in self._journal.deletes:
                continue
            info = None
            if kind is not Kind.DIRECTORY:
                with contextlib.suppress(NotFound):
                    info = await self._store.head(key)
            elif await self._store.has_prefix(key):
                info = ObjectInfo(key, 0, "", 0)
            if info is not None:
                if known is None or known.kind is not kind or known.version not in (info.version, MARKED):
                    self._names.create(
                        parent,
                        name,
                        kind,
                        attributes=None,
                        size=info.size,
                        version=info.version,
                        mtime_ns=info.mtime_ns,
                        checked_s=self._namespace.now_s(),
                    )
                return
        self._names.erase(parent, name)

    # -- moves

    async def _finish(self, number: int, operation: OperationRecord) -> None:
        arguments = operation.arguments
        log.info("finishing the %s of %s", operation.kind, ", ".join(f"{k} {v!r}" for k, v in arguments.items()))
        if operation.kind == MOVE:
            await self._move(arguments["source"], arguments["target"], arguments["version"] or None)
            if arguments.get("replaced"):
                await self._delete([arguments["replaced"]])
        elif operation.kind == MOVE_DIRECTORY:
            await self._move_below(arguments["source"], arguments["target"])
        elif operation.kind == SWAP:
            first, second, between = arguments["first"], arguments["second"], arguments["between"]
            steps = ((first, between), (second, _like(first, second)), (between, _like(second, first)))
            for step in range(operation.step, len(steps)):
                source, target = steps[step]
                operation.step = step  # what was moved already must not be moved back by the next restart
                self._journal.put_operation(number, operation)
                await self._journal.commit()
                if source.endswith("/"):
                    await self._move_below(source, target)
                else:
                    await self._move(source, target, None)
        for name in KEYS & arguments.keys():
            if arguments[name]:
                self._forget_listing(arguments[name])

    def _rekey(self, operation: OperationRecord) -> None:
        """Give what is dirty of moved keys its new key; what the move has replaced is gone."""
        arguments = operation.arguments
        moves: tuple[tuple[str, str], ...]
        if operation.kind == SWAP:
            first, second = arguments["first"], arguments["second"]
            moves = ((first, _like(second, first)), (second, _like(first, second)))
        else:
            source, target = arguments["source"], arguments["target"]
            moves = ((source, target),)
            self._journal.drop_delete(target)
            for number, record in list(self._journal.files.items()):
                if record.key in (target, arguments.get("replaced")) and str(record.inode) != arguments.get("inode"):
                    self._journal.drop_file(number)
                    self._staging.remove(number)
        for number, found in list(self._journal.files.items()):
            record = found
            for source, target in moves:
                if operation.kind == MOVE and record.kind is Kind.SPECIAL and record.key == source:
                    break  # the whiteout that the move left: it moves objects of the store only
                keys = (source,) if operation.kind == SWAP else (source, target)
                at = next((key for key in keys if _is_in(record.key, key)), None)
                if at is not None:  # copying again gave a new version to what has its new key already
                    never = record.mode is WriteMode.MUST_CACHE or record.kind is Kind.SPECIAL
                    expect = ABSENT if never and record.expect == ABSENT else None
                    record = msgspec.structs.replace(record, key=target + record.key[len(at) :], expect=expect)
                    self._journal.put_file(number, record)
                    break
            for source, target in moves:
                if record.inherits and _is_in(record.inherits, source):
                    inherits = target + record.inherits[len(source) :]
                    record = msgspec.structs.replace(record, inherits=inherits)
                    self._journal.put_file(number, record)
                    break
            for source, target in moves:
                if record.stored is not None and _is_in(record.stored[0], source):
                    stored = target + record.stored[0][len(source) :], ""
                    self._journal.put_file(number, msgspec.structs.replace(record, stored=stored))
                    break

    async def _move(self, source: str, target: str, version: str | None) -> None:
        try:
            info = await self._store.head(source)
            if version is None or info.version == version:
                await self._store.copy(source, target, version=info.version, size=info.size)
                reached("recover.copied")
                await self._delete([source])
        except (NotFound, VersionChanged):
            return  # it was finished

    async def _move_below(self, source: str, target: str) -> None:
        keys = []
        async with contextlib.aclosing(self._store.list_all(source)) as pages:
            async for page in pages:
                for info in sorted(page.objects, key=lambda i: (not i.key.endswith("/"), i.key)):
                    keys.append(info.key)
                    to = target + info.key[len(source) :]
                    await self._store.copy(info.key, to, version=info.version or None, size=info.size)
                    reached("recover.copied")
        await self._delete(keys)

    async def _delete(self, keys: list[str]) -> None:
        for error in (await self._store.delete(sorted(keys, reverse=True))).values():
            raise error

    def _forget_listing(self, key: str) -> None:
        parent, name = self._place(key)
        self._names.listings.forget(parent)
        self._erase(parent, name, key)

    def _erase(self, parent: int, name: bytes, key: str) -> None:
        entry = self._names.get(parent, name)
        if entry is None or (entry.kind is _kind_of(key) and self._entries.get(entry.inode) is None):
            self._names.erase(parent, name)  # else it is another object, which also stands for the name

    # -- names

    def _place(self, key: str) -> tuple[int, bytes]:
        """Return (parent, name) of a key, with the directories above it made where the index lacks them."""
        *above, last = key.rstrip("/").split("/")
        parent = ROOT_INODE
        for part in above:
            entry = self._names.get(parent, part.encode())
            if entry is None or entry.kind is not Kind.DIRECTORY:
                entry = self._names.create(
                    parent, part.encode(), Kind.DIRECTORY, attributes=None, mtime_ns=time.time_ns(), checked_s=0.0
                )
            parent = entry.inode
        if key.endswith(naming.SYMLINK_SUFFIX):
            last = last[: -len(naming.SYMLINK_SUFFIX)]
        return parent, last.encode()

    # -- files

    async def _resume(self, number: int, record: FileRecord) -> bool:
        """Make an entry dirty again; False if it was never closed, or its content is gone."""
        if not record.closed:
            return False
        content = None
        if record.kind is Kind.FILE and self._has_content(number, record):
            content = await trio.to_thread.run_sync(self._open, number, record)
            if content is None:
                return False
        inline = self._journal.inline(number)
        parent, name = self._place(record.key)
        expect: str | None = record.expect
        if record.kind is Kind.FILE and content is None:
            expect = await self._look_up(parent, name, record)
            if expect is None:
                return False
        entry = self._entry(parent, name, record)
        dirty = Dirty(
            number,
            entry.inode,
            record.kind,
            record.mode,
            (parent, name),
            record.key,
            Stored(
                expect,
                inherits=record.inherits,
                resumed=True,
                sent=((record.stamp, record.size), *([record.sending] if record.sending else [])),
            ),
            target=(inline or b"") if record.kind is Kind.SYMLINK else b"",
            closed=True,
            since_s=record.since_s,
            attributes_changed=content is None,
            replicas=Replicas(record.generation, record.holders),
        )
        if content is not None:
            arrived = best(self._journal.uploads, record.key, self._journal)
            dirty.resume(Source(record.key, content, open=arrived), os.fstat(content.fd).st_blocks * 512)
            space = self._cache.hierarchy.of(self._staging.directory_of(number))
            space.count_staged(dirty.accounted_bytes)
        self._entries.add(dirty)
        if dirty.needs_base:
            self._entries.note_partial(dirty)
        self._namespace.hold(entry.inode, parent, name)
        as_noted = content is None or os.fstat(content.fd).st_mtime_ns == record.stamp
        if record.inode != entry.inode or (inline is not None and not as_noted):
            self._journal.put_file(number, dirty.record(entry.attributes), inline if as_noted else None)
        if dirty.must_push:
            self._writeback.schedule(dirty)
        return True

    async def _look_up(self, parent: int, name: bytes, record: FileRecord) -> str | None:
        """Record what the store has of a file of which only the attributes changed; returns its version, None for none."""
        try:
            info = await self._store.head(record.key)
        except NotFound:
            return None
        entry = self._names.get(parent, name)
        if entry is None or entry.kind is not Kind.FILE or entry.version != info.version:
            self._names.create(
                parent,
                name,
                Kind.FILE,
                attributes=None,
                size=info.size,
                version=info.version,
                mtime_ns=info.mtime_ns,
                checked_s=self._namespace.now_s(),
            )
        return info.version

    def _has_content(self, number: int, record: FileRecord) -> bool:
        """Whether the staging file of a file is not what the store has; one that is goes."""
        if record.content:
            return True
        try:
            st = self._staging.path_of(number).stat()
        except FileNotFoundError:
            return False
        if (st.st_mtime_ns, st.st_size) != (record.stamp, record.size):
            return True  # a program wrote to it on its own
        self._staging.remove(number)
        return False

    def _open(self, number: int, record: FileRecord) -> StagedBytes | None:
        """Open the content of a file, from the journal where the staging file has not got it. Blocks."""
        path = self._staging.path_of(number)
        inline = self._journal.inline(number)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if inline is None and record.size:
                return None
            fd = self._staging.create(number)
        st = os.fstat(fd)
        if inline is not None and (st.st_mtime_ns < record.stamp or st.st_size < record.size):
            os.ftruncate(fd, 0)
            os.pwrite(fd, inline, 0)
            os.utime(fd, ns=(record.stamp, record.stamp))
        elif inline is not None and st.st_mtime_ns != record.stamp:
            self._staging.sync(fd)  # it was written to since, and takes the place of what the journal has
        if not record.base_size:
            return StagedBytes(fd, path, cache=self._cache, threads=self._threads)
        present = {page for pages in self._staging.data_ranges(fd, st.st_size) for page in pages}
        base_pages = -(-record.base_size // PAGE_BYTES)
        base = self._cache.acquire(record.base_key, record.base_version, record.base_size)
        return StagedBytes(
            fd,
            path,
            cache=self._cache,
            threads=self._threads,
            base=base,
            base_bytes=record.base_size,
            present={page for page in present if page < base_pages},
        )

    def _entry(self, parent: int, name: bytes, record: FileRecord) -> Entry:
        entry = self._names.get(parent, name)
        if entry is not None and entry.kind is record.kind and entry.inode == record.inode:
            entry.attributes, entry.checked_s = record.attributes, self._namespace.now_s()
            self._names.put(parent, name, entry)
            return entry
        if entry is not None and entry.kind is record.kind and not record.content:
            entry.attributes, entry.checked_s = record.attributes, self._namespace.now_s()
            self._names.put(parent, name, entry)
            return entry
        # A directory that was made here is another one than what the index has under the name, with what is in that.
        made = record.expect == ABSENT
        if entry is not None and entry.kind is Kind.DIRECTORY and record.kind is Kind.DIRECTORY and not made:
            entry.attributes, entry.checked_s = record.attributes, self._namespace.now_s()
            self._names.put(parent, name, entry)
            return entry
        size = record.size
        return self._names.create(
            parent,
            name,
            record.kind,
            attributes=record.attributes,
            size=size,
            version=record.expect or "",
            mtime_ns=record.stamp,
            checked_s=self._namespace.now_s(),
        )

    async def _was_pushed(self, record: FileRecord) -> bool:
        """Whether content that is not here any more went to the store: the last run ended before the journal said so."""
        try:
            info = await self._store.head(record.key)
        except StoreError:
            return False
        sizes = {record.size, record.sending[1] if record.sending is not None else record.size}
        return info.size in sizes and info.version != record.expect

    async def _set_aside(self, number: int, record: FileRecord) -> int:
        """A file that was never closed: keep what was written, and let the name show what the store has."""
        parent, name = self._place(record.key)
        entry = self._names.get(parent, name)
        if record.doomed and not await self._is_there(record):
            self._journal.put_delete(record.key, DeleteRecord(record.expect, 0, time.time()))
        elif entry is not None and entry.inode == record.inode:
            if record.expect:
                self._namespace.expire(entry.inode)
            else:
                self._names.erase(parent, name)
                self._names.listings.forget(parent)
        self._journal.drop_file(number)
        reached("recover.dropped")
        return await self._keep(number, record.key) if self._has_content(number, record) else 0

    def _refusal(self, record: FileRecord) -> str | None:
        """Say why the store can never hold what is to go there, None if it can. An earlier version asked too late."""
        if record.kind is Kind.SPECIAL or record.mode is WriteMode.MUST_CACHE:
            return None
        return naming.too_long(record.key, self._limits)

    async def _give_up(self, number: int, record: FileRecord, refusal: str) -> None:
        """Keep what can never go to the store, and let the name show what the store has: nothing."""
        kept = await trio.to_thread.run_sync(self._keep_refused, number, record)
        log.warning(
            "%r can never be brought to the under-store: %s; %s",
            record.key,
            refusal,
            f"what there was of it is {kept}" if kept else "there was nothing in it",
        )
        parent, name = self._place(record.key)
        entry = self._names.get(parent, name)
        if entry is not None and entry.kind is record.kind:
            self._names.erase(parent, name)
            self._names.listings.forget(parent)
        self._journal.drop_file(number)
        reached("recover.refused")

    def _keep_refused(self, number: int, record: FileRecord) -> Path | None:
        """Move a content to the recovered directory, if there is any. Blocks."""
        if record.kind is not Kind.FILE:
            target = self._journal.inline(number)
            return self._recovered.keep_bytes(target, record.key) if target else None
        content = self._open(number, record) if self._has_content(number, record) else None
        if content is None:
            return None
        empty = content.size == 0
        content.close()
        if empty:
            self._staging.remove(number)
            return None
        return self._recovered.keep_staging(self._staging, number, record.key)

    async def _keep(self, number: int, key: str) -> int:
        path = self._staging.path_of(number)
        try:
            if path.stat().st_size == 0:
                self._staging.remove(number)
                return 0
        except FileNotFoundError:
            return 0
        kept = await trio.to_thread.run_sync(self._recovered.keep_staging, self._staging, number, key)
        log.warning("%r was being written when the last run ended; what there was of it is %s", key, kept)
        return 1


def _kind_of(key: str) -> Kind:
    return Kind.DIRECTORY if key.endswith("/") else Kind.SYMLINK if key.endswith(naming.SYMLINK_SUFFIX) else Kind.FILE


def _above(prefix: str) -> str:
    return prefix[: prefix.rstrip("/").rfind("/") + 1]


def _is_in(key: str, moved: str) -> bool:
    return key == moved or (moved.endswith("/") and key.startswith(moved))


def _like(key: str, other: str) -> str:
    """Return ``key`` in the form (directory, symlink, file) of ``other``: what an exchange brings there."""
    plain = key.rstrip("/").removesuffix(naming.SYMLINK_SUFFIX)
    suffix = "/" if other.endswith("/") else naming.SYMLINK_SUFFIX if other.endswith(naming.SYMLINK_SUFFIX) else ""
    return plain + suffix
