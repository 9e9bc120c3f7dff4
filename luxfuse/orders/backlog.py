"""Unsaved changes: counted for ``status``, brought to the store for ``persist`` and ``unmount``.

Nothing is pushed here. `WriteBack` does that, one entry after the other and with pauses after failures; here it is told
to hurry, and watched. Counting looks at every entry, so its result is kept as long as that is cheap (`tally`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import trio

from luxfuse.core.names import path_of
from luxfuse.errors import LuxError
from luxfuse.index.journal import Journal
from luxfuse.types import Kind, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.deletes import is_at_or_below
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.unfinished import UnfinishedNames
from luxfuse.vfs.writeback import WriteBack

POLL_S = 0.1
COST_FACTOR = 20
"""At most a twentieth of the time goes into counting: a count of 100,000 entries is used for a second or so."""
PATIENCE_S = 60.0
"""After so long without anything getting to the store, `persist` gives up what is left, if the store is why."""
LINES = 200
"""Failures told in detail."""
OPEN = "is open for writing"
READ = "is removed, but still open: it goes from the under-store when it is closed"
UNREACHABLE = "the under-store cannot be reached"
LATE = "an earlier request that was not answered in time may be carried out yet"


@dataclass(frozen=True, slots=True)
class Tally:
    """The unsaved changes: ``files`` are files, directories and symlinks, ``open_files`` those of
    them that are open for writing. ``since_s``: when the oldest was changed first, in seconds since the epoch.
    ``failing``: how many of the files and deletes failed when they were tried last; ``error`` says how one of them did.
    ``held_deletes``: deletes that wait for a program that still reads the object. ``renames`` were interrupted, and are not
    finished in the store yet. ``local_only``: files that are never uploaded.
    """

    files: int = 0
    bytes: int = 0
    open_files: int = 0
    deletes: int = 0
    held_deletes: int = 0
    renames: int = 0
    since_s: float | None = None
    failing: int = 0
    error: str | None = None
    local_only: int = 0

    @property
    def due(self) -> int:
        """Number of files, deletes and renames that can go to the store now."""
        return self.files - self.open_files + self.deletes - self.held_deletes + self.renames


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a `drain` or `persist` has come: what is left, bytes sent to the store since the mount, for how long there
    was no progress, and why. At the end of `persist`: one line each for what failed and what is worth knowing."""

    files: int
    bytes: int
    deletes: int
    renames: int
    open_files: int
    put_bytes: int
    stalled_s: float
    error: str | None
    done: bool = False
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class _Wanted:
    """Something that `persist` waits for: an entry, or else the delete of ``key``; and what it was like before."""

    key: str
    dirty: Dirty | None
    error: LuxError | None
    uploaded: object = None


@dataclass(slots=True)
class _Persist:
    """One `persist` under way."""

    left: list[_Wanted]
    settled: int = 0
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    notes: list[str] = field(default_factory=list)

    error: str | None = None
    """Why the last one failed that was tried."""

    def fail(self, key: str, why: str) -> None:
        self.failed += 1
        if len(self.failures) < LINES:
            self.failures.append(f"{path_of(key)}: {why}")


class Watch:
    """Tells for how long there was no progress."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left: int | None = None
        self._put_bytes = 0
        self._since_s = trio.current_time()

    def stalled_s(self, left: int, error: str | None) -> float:
        """Return for how long neither ``left`` went down nor bytes were sent, in seconds."""
        now, statistics = trio.current_time(), self._store.counters.statistics()
        # A part may take minutes on a slow line: only after a failure is waiting for an answer no progress.
        sending = error is None and statistics.in_flight > 0
        if self._left is None or left < self._left or statistics.put_bytes != self._put_bytes or sending:
            self._since_s = now
        self._left, self._put_bytes = left, statistics.put_bytes
        return now - self._since_s


class Backlog:
    """The changes of one mount that are not in the store."""

    def __init__(
        self,
        *,
        entries: DirtyEntries,
        journal: Journal,
        writeback: WriteBack,
        store: Store,
        unfinished: UnfinishedNames,
    ) -> None:
        self._entries = entries
        self._journal = journal
        self._writeback = writeback
        self._deletes = writeback.deletes
        self._store = store
        self._unfinished = unfinished
        self._drains = 0
        self._tally = Tally()
        self._good_until_s = 0.0

    # -- counting

    def tally(self) -> Tally:
        """Count; the answer may be older the more there is to count."""
        began_s = time.monotonic()
        if began_s >= self._good_until_s:
            self._tally = self._count()
            ended_s = time.monotonic()
            self._good_until_s = ended_s + (ended_s - began_s) * COST_FACTOR
        return self._tally

    def _count(self) -> Tally:
        files = size = open_files = failing = local_only = 0
        since_s: float | None = None
        error: str | None = None
        for dirty in self._entries:
            if dirty.place is None:
                continue
            if is_local(dirty):
                local_only += 1
                continue
            if not self._is_waiting(dirty):
                continue
            files += 1
            size += _size_of(dirty)
            open_files += dirty.writers > 0
            since_s = dirty.since_s if since_s is None else min(since_s, dirty.since_s)
            if dirty.tries.error is not None:
                failing += 1
                error = error or f"{path_of(dirty.key)}: {dirty.tries.error}"
        held = 0
        for key, record in self._journal.deletes.items():
            held += self._deletes.is_read(key)
            since_s = record.since_s if since_s is None else min(since_s, record.since_s)
            if (failure := self._deletes.error(key)) is not None:
                failing += 1
                error = error or f"removing {path_of(key)}: {failure}"
        failing += self._unfinished.failing
        return Tally(
            files,
            size,
            open_files,
            len(self._journal.deletes),
            held,
            self._unfinished.count,
            since_s,
            failing,
            error or self._unfinished.error,
            local_only,
        )

    def _is_waiting(self, dirty: Dirty) -> bool:
        """Whether an entry has to be pushed; asks the disk only about files that are open for writing, or not closed yet.

        One that nobody writes may be of the latter: what was left of an open for writing when the daemon was killed.
        """
        if dirty.writers or dirty.emptied or (not dirty.closed and dirty.stored.resumed):
            return dirty.must_push
        return dirty.attributes_changed or self._writeback.is_under_way(dirty)

    # -- draining

    @property
    def draining(self) -> bool:
        """Whether everything is uploaded without delay now."""
        return self._drains > 0

    def hasten(self) -> None:
        """Bring everything up without delay from now on."""
        self._drains += 1
        self._writeback.pace.urgent = True
        self._writeback.hurry()

    def slow_down(self) -> None:
        """Take back one `hasten`."""
        self._drains -= 1
        self._writeback.pace.urgent = self._drains > 0

    @property
    def any_due(self) -> bool:
        """Whether anything can go to the store now."""
        return self._count().due > 0

    def watch(self) -> Watch:
        """Begin to watch the progress."""
        return Watch(self._store)

    async def drain(self) -> AsyncGenerator[Progress, None]:
        """Bring everything that is closed to the store, for as long as the iteration lasts; ends when it is there."""
        self.hasten()
        watch = self.watch()
        try:
            while True:
                step = self.step(watch)
                yield step
                if step.done:
                    return
                await trio.sleep(POLL_S)
        finally:
            self.slow_down()

    def step(self, watch: Watch) -> Progress:
        """Return how far a drain has come that ``watch`` watches."""
        tally = self.tally()
        if not tally.due:
            tally = self._tally = self._count()
        error = self._reason(tally.error)
        return Progress(
            tally.files,
            tally.bytes,
            tally.deletes,
            tally.renames,
            tally.open_files,
            self._store.counters.statistics().put_bytes,
            watch.stalled_s(tally.files + tally.deletes + tally.renames, error),
            error,
            not tally.due,
        )

    def _reason(self, error: str | None) -> str | None:
        return error or (None if self._store.reachable else UNREACHABLE)

    # -- some paths

    async def persist(self, paths: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Bring what is at and below the paths (relative to the mount) to the store; ends when each is there or failed.

        What is written after the beginning is not waited for. Each push that fails after it is a failure.
        """
        state = _Persist([])
        for path in paths:
            self._collect(path, state)
        for path in paths:
            self._writeback.hurry(path)
        watch = self.watch()
        while True:
            began_s = time.monotonic()
            state.left = [wanted for wanted in state.left if not self._settle(wanted, state)]
            why = self._reason(state.error) or (LATE if self._all_wait(state.left) else None)
            stalled_s = watch.stalled_s(-state.settled, why)
            if why is not None and stalled_s > PATIENCE_S:
                for wanted in state.left:
                    state.fail(wanted.key, f"not tried: {why}")
                state.left = []
            yield self._told(state, stalled_s, why)
            if not state.left:
                return
            await trio.sleep(max(POLL_S, (time.monotonic() - began_s) * COST_FACTOR))

    def _settle(self, wanted: _Wanted, state: _Persist) -> bool:
        """Take note of something that is in the store now, or has failed; False if it is neither."""
        reason = self._look(wanted)
        if reason == "":
            state.settled += 1
        elif reason is not None:
            state.fail(wanted.key, reason)
            state.error = reason if reason not in (OPEN, READ) else state.error
        return reason is not None

    def _all_wait(self, left: list[_Wanted]) -> bool:
        """Whether all that is left waits for requests that may be carried out yet: no try of it fails until they end."""
        if not left or not self._store.late:
            return False
        return all(
            self._writeback.must_wait(w.dirty) if w.dirty is not None else self._store.must_wait([w.key]) for w in left
        )

    def has_changes(self, path: str) -> bool:
        """Whether anything at or below a path is not in the store."""
        return any(is_at_or_below(d.key, path) for d in self._entries if d.place is not None) or any(
            is_at_or_below(key, path) for key in self._journal.deletes
        )

    def _collect(self, path: str, state: _Persist) -> None:
        local = []
        for dirty in self._entries:
            if dirty.place is None or not is_at_or_below(dirty.key, path):
                continue
            if not is_local(dirty):
                state.left.append(_Wanted(dirty.key, dirty, dirty.tries.error, dirty.uploaded))
            elif path_of(dirty.key) == path:
                state.fail(dirty.key, f"is local only ({_why_local(dirty)}): it is never brought to the under-store")
            else:
                local.append(dirty)
        if local:
            several = f" and {len(local) - 1} more" if len(local) > 1 else ""
            state.notes.append(f"{path_of(local[0].key)}{several}: local only ({_why_local(local[0])})")
        for key in self._journal.deletes:
            if is_at_or_below(key, path):
                state.left.append(_Wanted(key, None, self._deletes.error(key)))

    def _look(self, wanted: _Wanted) -> str | None:
        """Return why something has failed, "" if it is in the store, None while it is neither."""
        dirty = wanted.dirty
        if dirty is None:
            return self._look_at_delete(wanted)
        wanted.key = dirty.key
        if dirty.finished or dirty.place is None:
            return ""
        if dirty.tries.error is not None and dirty.tries.error is not wanted.error:
            return str(dirty.tries.error)
        if not self._is_waiting(dirty):
            return ""
        if not dirty.writers:
            return None
        pushed = dirty.uploaded is not None and dirty.uploaded != wanted.uploaded
        return OPEN if pushed or not self._writeback.is_under_way(dirty) else None

    def _look_at_delete(self, wanted: _Wanted) -> str | None:
        if wanted.key not in self._journal.deletes:
            return ""
        if self._deletes.is_read(wanted.key):
            return READ
        error = self._deletes.error(wanted.key)
        return str(error) if error is not None and error is not wanted.error else None

    def _told(self, state: _Persist, stalled_s: float, error: str | None) -> Progress:
        entries = [w.dirty for w in state.left if w.dirty is not None]
        failures = list(state.failures)
        if state.failed > len(failures):
            failures.append(f"{state.failed - len(failures)} more failed")
        return Progress(
            len(entries),
            sum(_size_of(d) for d in entries),
            len(state.left) - len(entries),
            0,
            0,
            self._store.counters.statistics().put_bytes,
            stalled_s,
            error,
            not state.left,
            tuple(failures) if not state.left else (),
            tuple(state.notes) if not state.left else (),
        )


def is_local(dirty: Dirty) -> bool:
    """Whether an entry never goes to the store."""
    return dirty.mode is WriteMode.MUST_CACHE or dirty.kind is Kind.SPECIAL


def _why_local(dirty: Dirty) -> str:
    return "no regular file" if dirty.kind is Kind.SPECIAL else "must-cache"


def _size_of(dirty: Dirty) -> int:
    if dirty.source is None:
        return 0
    stamp = dirty.noted if dirty.noted is not None and not dirty.writers else dirty.stamp
    return stamp.size if stamp is not None else 0
