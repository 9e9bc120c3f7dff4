"""Unsaved changes: counted for ``status``, brought to the store for ``unmount`` and, some of them, by `persisting`.

Nothing is pushed here. `WriteBack` does that, one entry after the other and with pauses after failures; here it is told
to hurry, and watched. Counting looks at every entry, so its result is kept as long as that is cheap (`tally`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain

import trio

from luxfuse.core.names import path_of
from luxfuse.index.journal import FileRecord, Journal
from luxfuse.types import Kind, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.deletes import is_at_or_below
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.unfinished import UnfinishedNames, error_of
from luxfuse.vfs.writeback import WriteBack

POLL_S = 0.1
COST_FACTOR = 20
"""At most a twentieth of the time goes into counting: a count of 100,000 entries is used for a second or so."""
UNREACHABLE = "the under-store cannot be reached"


@dataclass(frozen=True, slots=True)
class Tally:
    """The unsaved changes: ``files`` are files, directories and symlinks, ``open_files`` those of them that are open for
    writing; what was promised and cannot be taken up yet is among the former. ``since_s``: when the oldest was changed
    first, in seconds since the epoch. ``failing``: how many of the files and deletes failed when they were tried last;
    ``error`` says how one of them did. ``held_deletes``: deletes that wait for a program that still reads the object.
    ``renames`` were interrupted, and are not finished in the store yet. ``local_only``: files that are never uploaded.
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
        self.entries = entries
        self.journal = journal
        self.writeback = writeback
        self.deletes = writeback.deletes
        self.store = store
        self.unfinished = unfinished
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
        for dirty in self.entries:
            if dirty.place is None:
                continue
            if is_local(dirty):
                local_only += 1
                continue
            if not self.is_waiting(dirty):
                continue
            files += 1
            size += size_of(dirty)
            open_files += dirty.writers > 0
            since_s = dirty.since_s if since_s is None else min(since_s, dirty.since_s)
            if dirty.tries.error is not None:
                failing += 1
                error = error or f"{path_of(dirty.key)}: {dirty.tries.error}"
        held = 0
        for key, record in self.journal.deletes.items():
            held += self.deletes.is_read(key)
            since_s = record.since_s if since_s is None else min(since_s, record.since_s)
            if (failure := self.deletes.error(key)) is not None:
                failing += 1
                error = error or f"removing {path_of(key)}: {failure}"
        renames, promises = self.unfinished.renames, self.unfinished.promises
        for wait, promised in promises.items():
            if is_local(promised):
                local_only += 1
                continue
            files += 1
            size += promised.size
            since_s = promised.since_s if since_s is None else min(since_s, promised.since_s)
            failing += wait.error is not None
            error = error or f"{path_of(promised.key)}: {wait.error}"
        failing += sum(wait.error is not None for wait in renames)
        return Tally(
            files,
            size,
            open_files,
            len(self.journal.deletes),
            held,
            len(renames),
            since_s,
            failing,
            error or error_of(renames),
            local_only,
        )

    def is_waiting(self, dirty: Dirty) -> bool:
        """Whether an entry has to be pushed; asks the disk only about files that are open for writing, or not closed yet.

        One that nobody writes may be of the latter: what was left of an open for writing when the daemon was killed.
        """
        if dirty.writers or dirty.emptied or (not dirty.closed and dirty.stored.resumed):
            return dirty.must_push
        return dirty.attributes_changed or self.writeback.is_under_way(dirty)

    def has_changes(self, path: str) -> bool:
        """Whether anything at or below a path is not in the store."""
        entries = (dirty.key for dirty in self.entries if dirty.place is not None)
        promised = (record.key for record in self.unfinished.promises.values())
        return any(is_at_or_below(key, path) for key in chain(entries, self.journal.deletes, promised))

    # -- draining

    @property
    def draining(self) -> bool:
        """Whether everything is uploaded without delay now."""
        return self._drains > 0

    def hasten(self) -> None:
        """Bring everything up without delay from now on."""
        self._drains += 1
        self.writeback.pace.urgent = True
        self.writeback.hurry()

    def slow_down(self) -> None:
        """Take back one `hasten`."""
        self._drains -= 1
        self.writeback.pace.urgent = self._drains > 0

    @property
    def any_due(self) -> bool:
        """Whether anything can go to the store now."""
        return self._count().due > 0

    def watch(self) -> Watch:
        """Begin to watch the progress."""
        return Watch(self.store)

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
        error = self.reason(tally.error)
        return Progress(
            tally.files,
            tally.bytes,
            tally.deletes,
            tally.renames,
            tally.open_files,
            self.store.counters.statistics().put_bytes,
            watch.stalled_s(tally.files + tally.deletes + tally.renames, error),
            error,
            not tally.due,
        )

    def reason(self, error: str | None) -> str | None:
        """Why nothing gets to the store, as far as that is known; ``error``: why something did not."""
        return error or (None if self.store.reachable else UNREACHABLE)


def is_local(changed: Dirty | FileRecord) -> bool:
    """Whether an entry never goes to the store."""
    return changed.mode is WriteMode.MUST_CACHE or changed.kind is Kind.SPECIAL


def size_of(dirty: Dirty) -> int:
    """Return how many bytes of an entry wait for the store."""
    if dirty.source is None:
        return 0
    stamp = dirty.noted if dirty.noted is not None and not dirty.writers else dirty.stamp
    return stamp.size if stamp is not None else 0
