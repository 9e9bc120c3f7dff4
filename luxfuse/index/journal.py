"""The journal: changes made here that are not in the under-store yet. The truth about them, across crashes.

Tables: FILES ``id (8 bytes)`` -> `FileRecord`; INLINE ``id`` -> content of a small file; DELETES ``digest of the key`` ->
(key, `DeleteRecord`); OPERATIONS ``id`` -> `OperationRecord`; UPLOADS and PARTS: see `noted_uploads`; META: ``format``,
``next_id``, ``identity``, ``boot``, and `noted_names`. (Digests, because object keys are longer than LMDB takes as keys.)

Theory of operation
-------------------
All records are mirrored in memory. A note (`put_file`, `drop_delete`, ...) changes the mirror and queues records, without
waiting; a commit writes all queued records in one transaction, synced to the platter. As notes are made in the event loop
and a commit takes the whole queue between two of its steps, what was noted in one stretch of code without an await
becomes durable as a whole or not at all. Commits are grouped: while one runs, all that wait for the next share it. No
task leads them: the thread's end is a plain call in the event loop, which begins the next one.

When a commit fails (ENOSPC, EIO), its waiters get the error, the records stay queued, and `committer` tries again;
`failing` says so meanwhile.

Where the daemon has a successor, a note is in the trail (`estate.trail`) until it is committed: a kill loses none.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import outcome
import trio

from luxfuse.core.names import directories_of
from luxfuse.errors import IndexFormatError
from luxfuse.estate.trail import Stream
from luxfuse.index.journal_copy import JournalCopy
from luxfuse.index.journal_file import OWNER, JournalFile, Records, Table, inline_bytes
from luxfuse.index.lifecycle import boot_id
from luxfuse.index.noted_names import NotedNames
from luxfuse.index.noted_uploads import NotedUploads
from luxfuse.index.records import (
    Decode,
    DeleteRecord,
    FileRecord,
    OperationRecord,
    encode,
    key_of,
)
from luxfuse.index.uncommitted import U64
from luxfuse.index.withdrawn import Withdrawn

__all__ = ["DeleteRecord", "FileRecord", "Journal", "OperationRecord"]

log = logging.getLogger(__name__)

RECORDS_BOUND = 1_000_000
INLINE_BOUND = 64 << 20
"""Bytes of inline content that may wait for a failing disk."""
ID_BLOCK = 1 << 20
COMMIT_DELAY_S = 0.02
RETRY_INTERVAL_S = 2.0

Waiter = Callable[[OSError | None], None]
"""Called at the end of a commit, with its error; raises nothing."""


class Journal:
    """One open journal, used from the event loop's thread. Records in the mirror are changed by `put_...` only."""

    def __init__(self, path: Path, stream: Stream | None = None, copy: JournalCopy | None = None) -> None:
        """Open or create it in directory ``path``; ``stream``: of the trail; with a ``copy``. Raises `IndexFormatError`."""
        self.path = path
        self.files: dict[int, FileRecord] = {}
        self.deletes: dict[str, DeleteRecord] = {}
        self.deletes_below: Counter[str] = Counter()
        """By key prefix of a directory: how many objects in it, or further below, are to be deleted."""
        self.operations: dict[int, OperationRecord] = {}
        self.uploads = NotedUploads(self._note)
        self.names = NotedNames(self._note)
        self.withdrawn = Withdrawn()
        self.failing: str | None = None
        self._pending: Records = {}
        self._committing: Records = {}
        self._inline: set[int] = set()
        self._inline_waiting = 0
        self._next: list[Waiter] = []
        self._running: list[Waiter] | None = None
        """Those that wait for the next commit, and for the one that runs."""
        self._afterwards: list[Callable[[], None]] = []
        self._finishing: list[Callable[[], None]] = []
        """Calls to make after the next commit, and after the one that runs."""
        self._changed = trio.Event()
        self._writes = 0
        """Commits that were begun."""
        self._mark = 0
        """How far the one that runs goes in the trail."""
        self._file = JournalFile(path, stream, copy)
        try:
            self._file.take_up()
            self._load()
            self._next_id: int = U64.unpack(self._file.get(Table.META, b"next_id") or U64.pack(1))[0]
            self._reserved = self._reserving = self._next_id + 2 * ID_BLOCK
            boot, last = boot_id(), self._file.get(Table.META, b"boot")
            self.rebooted = last is not None and last != boot
            """Whether the machine went down since the journal was used last."""
            records: Records = {
                (Table.META, b"next_id"): U64.pack(self._reserving),
                (Table.META, b"boot"): boot,
                (Table.META, OWNER): self._file.owner,
            }
            identity = self._file.get(Table.META, b"identity")
            if identity is None:
                identity = records[Table.META, b"identity"] = secrets.token_hex(4).encode()
            self.identity = identity.decode()
            """Made once: numbers of files are unique with it, among all journals."""
            self._file.commit(records)
        except IndexFormatError:
            self._file.close(fails=True)
            raise
        except (msgspec.MsgspecError, struct.error, OSError) as exc:
            self._file.close(fails=True)
            raise self._file.unusable(exc) from exc

    def _load(self) -> None:
        records = self._file.records
        self.files = {U64.unpack(key)[0]: Decode.file(value) for key, value in records(Table.FILES)}
        self.operations = {U64.unpack(key)[0]: Decode.operation(value) for key, value in records(Table.OPERATIONS)}
        self.deletes = dict(Decode.delete(value) for _, value in records(Table.DELETES))
        self.deletes_below = Counter(prefix for key in self.deletes for prefix in directories_of(key))
        self.uploads.load(records(Table.UPLOADS), records(Table.PARTS))
        self.names.load(records(Table.META))
        self._inline = {U64.unpack(key)[0] for key, _ in records(Table.INLINE)}

    # -- ids

    def new_id(self) -> int:
        """Return a number that was never returned before, not even by a run that crashed. Raises OSError ENOSPC.

        That it was taken needs no commit: they are reserved in blocks.
        """
        if self._next_id >= self._reserved:
            raise OSError(errno.ENOSPC, f"journal {self.path} cannot reserve numbers: {self.failing}")
        number, self._next_id = self._next_id, self._next_id + 1
        if self._reserving - self._next_id < ID_BLOCK:
            self._reserving += ID_BLOCK
            self._note(Table.META, b"next_id", U64.pack(self._reserving))
        return number

    # -- notes

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Make changes here, and of the index, of which a successor finds all or none: in a block without a wait."""
        return self._file.together()

    def put_file(self, number: int, record: FileRecord, inline: bytes | None = None) -> None:
        """Note a file, and its content if ``inline`` is given; else ``record.has_inline`` says if the noted one stays.

        Raises OSError ENOSPC, with nothing noted, for a new file where there are too many, and for inline content
        while too much of it waits for a failing disk.
        """
        before = self.files.get(number)
        if before is None:
            self._check_room(len(self.files))
        key = U64.pack(number)
        if inline is not None:
            replaced = self._pending.get((Table.INLINE, key)) or b""
            if self.failing and self._inline_waiting - len(replaced) + len(inline) > INLINE_BOUND:
                raise OSError(errno.ENOSPC, f"journal {self.path} cannot be written: {self.failing}")
            record.has_inline = True
            self._inline.add(number)
            self._note(Table.INLINE, key, inline)
        elif not record.has_inline:
            self._drop_inline(number)
        if before is not None:
            self.withdrawn.note(before, record, self._writes)
        self.files[number] = record
        self._note(Table.FILES, key, encode(record))

    def drop_file(self, number: int) -> None:
        """The file is in the store, or gone for good; it need not be known."""
        if (before := self.files.pop(number, None)) is not None:
            self.withdrawn.note(before, None, self._writes)
            self._drop_inline(number)
            self._note(Table.FILES, U64.pack(number), None)

    def _drop_inline(self, number: int) -> None:
        if number in self._inline:
            self._inline.remove(number)
            self._note(Table.INLINE, U64.pack(number), None)

    def inline(self, number: int) -> bytes | None:
        """Return the content that was noted with a file, if any."""
        key = (Table.INLINE, U64.pack(number))
        for changes in (self._pending, self._committing):
            if key in changes:
                return changes[key]
        return self._file.get(*key) if number in self._inline else None

    def put_delete(self, key: str, record: DeleteRecord) -> None:
        """Note an object to be deleted. Raises OSError ENOSPC, with nothing noted, where there are too many."""
        if key not in self.deletes:
            self._check_room(len(self.deletes))
            self.deletes_below.update(directories_of(key))
        self.deletes[key] = record
        self._note(Table.DELETES, key_of(key), encode((key, record)))

    def drop_delete(self, key: str) -> None:
        """The object is deleted, or not to be deleted any more; it need not be known."""
        if self.deletes.pop(key, None) is not None:
            for prefix in directories_of(key):
                self.deletes_below[prefix] -= 1
                if not self.deletes_below[prefix]:
                    del self.deletes_below[prefix]
            self._note(Table.DELETES, key_of(key), None)

    def is_waiting(self, record: DeleteRecord) -> bool:
        """Whether the file that a delete comes after has content that the under-store does not have."""
        return (after := self.files.get(record.after)) is not None and after.content

    def put_operation(self, number: int, record: OperationRecord) -> None:
        """Note a change of several steps, or how far it has come."""
        self.operations[number] = record
        self._note(Table.OPERATIONS, U64.pack(number), encode(record))

    def drop_operation(self, number: int) -> None:
        """The change is complete, or undone; it need not be known."""
        if self.operations.pop(number, None) is not None:
            self._note(Table.OPERATIONS, U64.pack(number), None)

    def _check_room(self, count: int) -> None:
        if count >= RECORDS_BOUND:
            raise OSError(errno.ENOSPC, f"journal {self.path} holds {count} records")

    def _note(self, table: Table, key: bytes, value: bytes | None) -> None:
        if table is Table.INLINE:
            self._inline_waiting += len(value or b"") - len(self._pending.get((table, key)) or b"")
        self._file.outlive(table, key, value)
        self._pending[table, key] = value
        self._changed.set()

    # -- committing

    @property
    def uncommitted(self) -> int:
        """Number of records that are only in memory."""
        return len(self._pending) + len(self._committing)

    def is_durable(self, number: int) -> bool:
        """Whether the last note of a file is on the platter."""
        key = (Table.FILES, U64.pack(number))
        return key not in self._pending and key not in self._committing

    def after_commit(self, done: Callable[[], None]) -> None:
        """Call ``done``, which raises nothing, when all that has been noted by now is durable."""
        if self.uncommitted:
            (self._afterwards if self._pending else self._finishing).append(done)
        else:
            done()

    def when_durable(self, done: Waiter) -> None:
        """Call ``done`` when everything noted before is durable, or cannot be made so now; at once if it is already."""
        if self._pending:
            self._next.append(done)
            if self._running is None:
                self._begin()
        elif self._running is not None:
            self._running.append(done)
        else:
            done(None)

    async def commit(self) -> None:
        """Return when everything noted before is durable. Raises OSError if it cannot be made so now."""
        ended = trio.Event()
        answer: list[OSError | None] = []

        def done(error: OSError | None) -> None:
            answer.append(error)
            ended.set()

        self.when_durable(done)
        if not answer:
            await ended.wait()
        if error := answer[0]:  # each waiter gets an exception of its own
            raise OSError(error.errno, error.strerror) from error

    async def require(self) -> None:
        """Raise OSError if nothing can be made durable now: a change that programs would see is not begun then."""
        if self.failing:
            await self.commit()

    async def commit_made(self) -> None:
        """As `commit`, for a change that programs see already: it stays made if the disk fails only now.

        It is kept in memory, as on a local disk, until a commit succeeds; an fsync of the directory, and what comes after
        (`require`), get the error.
        """
        with contextlib.suppress(OSError):
            await self.commit()

    async def committer(self) -> None:
        """Commit notes in the background at the latest twice `COMMIT_DELAY_S` after they were made, until cancelled.

        Where others commit all the while, theirs take the notes along: a commit of its own would only keep them waiting.
        """
        await trio.to_thread.run_sync(self._file.make_log)
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            writes = self._writes
            await trio.sleep(COMMIT_DELAY_S)
            if self._writes != writes:
                if self._pending:
                    self._changed.set()
                continue
            try:
                await self.commit()
            except OSError:
                await trio.sleep(RETRY_INTERVAL_S)
                self._changed.set()

    def _begin(self) -> None:
        """Commit all notes in a thread; so it is carried through, whatever becomes of those that wait."""
        changes, self._pending = self._pending, {}
        self._committing, self._finishing, self._running = changes, self._afterwards, self._next
        self._afterwards, self._next = [], []
        self._mark = self._file.mark()
        self._writes += 1
        token = trio.lowlevel.current_trio_token()

        def deliver(result: outcome.Outcome[None]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._end, changes, result)

        try:
            trio.lowlevel.start_thread_soon(lambda: self._file.commit(changes), deliver)
        except RuntimeError as exc:  # no more threads: those that wait hear of it, and the next commit tries again
            deliver(outcome.Error(OSError(errno.EAGAIN, str(exc))))

    def _end(self, changes: Records, result: outcome.Outcome[None]) -> None:
        """A commit has ended: begin the next one, if somebody waits for it, and tell those that waited for this one."""
        error = None
        self._committing, finishing, self._finishing = {}, self._finishing, []
        if isinstance(result, outcome.Error):
            error = self._failed(changes, result.error)
            self._afterwards[:0] = finishing
        else:
            self._committed(changes)
        waiters, self._running = self._running or [], None
        if self._next:
            self._begin()
        for done in finishing if error is None else ():
            done()
        for waiter in waiters:
            try:
                waiter(error)
            except Exception:
                log.exception("what follows a commit of the journal failed in an unexpected way")

    def _committed(self, changes: Records) -> None:
        self._file.written(self._mark)
        self.withdrawn.committed(self._writes)
        self._inline_waiting -= inline_bytes(changes)
        if (reserved := changes.get((Table.META, b"next_id"))) is not None:
            self._reserved = U64.unpack(reserved)[0]
        if self.failing:
            log.info("journal %s is written again", self.path)
            self.failing = None

    def _failed(self, changes: Records, exc: BaseException) -> OSError:
        """Keep changes that could not be committed, for the next commit; returns the error for those that waited."""
        changes.update(self._pending)
        self._pending = changes
        self._inline_waiting = inline_bytes(changes)
        self._fail(exc)
        if isinstance(exc, OSError):
            return exc
        log.error("a commit of the journal failed in an unexpected way", exc_info=exc)
        return OSError(errno.EIO, f"internal error: {type(exc).__name__}")

    def _fail(self, exc: BaseException) -> None:
        if not self.failing:
            log.warning("journal cannot be written, keeping changes in memory: %s", exc)
        self.failing = (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__
        if self._file.damaged:
            try:
                self._file.reopen()
            except OSError as again:
                self.failing = again.strerror or str(again)

    def close(self, *, fails: bool = False) -> None:
        """Close; `commit` before, or notes since then are lost. ``fails``: as in `JournalFile.close`."""
        self._file.close(fails=fails)
