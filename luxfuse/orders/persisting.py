"""What is at and below some paths, brought to the under-store for ``persist``: each of it until it is there or has failed.

Nothing is pushed here, see `backlog`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import trio

from luxfuse.core.names import path_of
from luxfuse.errors import LuxError
from luxfuse.orders.backlog import COST_FACTOR, POLL_S, Backlog, Progress, is_local, size_of
from luxfuse.types import Kind
from luxfuse.vfs.deletes import is_at_or_below
from luxfuse.vfs.dirty import Dirty

PATIENCE_S = 60.0
"""After so long without anything getting to the store what is left is given up, if the store is why."""
LINES = 200
"""Failures told in detail."""
OPEN = "is open for writing"
READ = "is removed, but still open: it goes from the under-store when it is closed"
LATE = "an earlier request that was not answered in time may be carried out yet"


@dataclass(slots=True, eq=False)
class _Wanted:
    """Something that is waited for: an entry, or else the delete of ``key``; and what it was like before."""

    key: str
    dirty: Dirty | None
    error: LuxError | None
    uploaded: object = None


async def persist(backlog: Backlog, paths: Sequence[str]) -> AsyncGenerator[Progress, None]:
    """Bring what is at and below the paths (relative to the mount) to the store; ends when each is there or failed.

    What is written after the beginning is not waited for. Each push that fails after it is a failure.
    """
    wait = _Wait(backlog)
    for path in paths:
        wait.collect(path)
    for path in paths:
        backlog.writeback.hurry(path)
    watch = backlog.watch()
    while True:
        began_s = time.monotonic()
        wait.look()
        why = wait.reason
        stalled_s = watch.stalled_s(-wait.settled, why)
        if why is not None and stalled_s > PATIENCE_S:
            wait.give_up(why)
        yield wait.told(stalled_s, why)
        if not wait.left:
            return
        await trio.sleep(max(POLL_S, (time.monotonic() - began_s) * COST_FACTOR))


class _Wait:
    """One `persist` under way."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self.left: list[_Wanted] = []
        self.settled = 0
        self._failures: list[str] = []
        self._failed = 0
        self._notes: list[str] = []
        self._error: str | None = None
        """Why the last one failed that was tried."""

    def collect(self, path: str) -> None:
        """Want what is at and below a path."""
        backlog, local = self._backlog, []
        for dirty in backlog.entries:
            if dirty.place is None or not is_at_or_below(dirty.key, path):
                continue
            if not is_local(dirty):
                self.left.append(_Wanted(dirty.key, dirty, dirty.tries.error, dirty.uploaded))
            elif path_of(dirty.key) == path:
                self._fail(dirty.key, f"is local only ({_why_local(dirty)}): it is never brought to the under-store")
            else:
                local.append(dirty)
        if local:
            several = f" and {len(local) - 1} more" if len(local) > 1 else ""
            self._notes.append(f"{path_of(local[0].key)}{several}: local only ({_why_local(local[0])})")
        for wait, promised in backlog.unfinished.promises.items():
            if is_at_or_below(promised.key, path):
                self._fail(promised.key, f"cannot be taken up from the last run yet: {wait.error}")
        for key in backlog.journal.deletes:
            if is_at_or_below(key, path):
                self.left.append(_Wanted(key, None, backlog.deletes.error(key)))

    def look(self) -> None:
        """Take note of what is in the store by now, or has failed."""
        self.left = [wanted for wanted in self.left if not self._settle(wanted)]

    @property
    def reason(self) -> str | None:
        """Why nothing gets to the store, as far as that is known."""
        return self._backlog.reason(self._error) or (LATE if self._all_wait() else None)

    def give_up(self, why: str) -> None:
        for wanted in self.left:
            self._fail(wanted.key, f"not tried: {why}")
        self.left = []

    def told(self, stalled_s: float, error: str | None) -> Progress:
        entries = [w.dirty for w in self.left if w.dirty is not None]
        failures = list(self._failures)
        if self._failed > len(failures):
            failures.append(f"{self._failed - len(failures)} more failed")
        done = not self.left
        return Progress(
            len(entries),
            sum(size_of(d) for d in entries),
            len(self.left) - len(entries),
            0,
            0,
            self._backlog.store.counters.statistics().put_bytes,
            stalled_s,
            error,
            done,
            tuple(failures) if done else (),
            tuple(self._notes) if done else (),
        )

    def _fail(self, key: str, why: str) -> None:
        self._failed += 1
        if len(self._failures) < LINES:
            self._failures.append(f"{path_of(key)}: {why}")

    def _settle(self, wanted: _Wanted) -> bool:
        """Take note of something that is in the store now, or has failed; False if it is neither."""
        reason = self._look(wanted)
        if reason == "":
            self.settled += 1
        elif reason is not None:
            self._fail(wanted.key, reason)
            self._error = reason if reason not in (OPEN, READ) else self._error
        return reason is not None

    def _all_wait(self) -> bool:
        """Whether all that is left waits for requests that may be carried out yet: no try of it fails until they end."""
        backlog = self._backlog
        if not self.left or not backlog.store.late:
            return False
        return all(
            backlog.writeback.must_wait(w.dirty) if w.dirty is not None else backlog.store.must_wait([w.key])
            for w in self.left
        )

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
        if not self._backlog.is_waiting(dirty):
            return ""
        if not dirty.writers:
            return None
        pushed = dirty.uploaded is not None and dirty.uploaded != wanted.uploaded
        return OPEN if pushed or not self._backlog.writeback.is_under_way(dirty) else None

    def _look_at_delete(self, wanted: _Wanted) -> str | None:
        backlog = self._backlog
        if wanted.key not in backlog.journal.deletes:
            return ""
        if backlog.deletes.is_read(wanted.key):
            return READ
        error = backlog.deletes.error(wanted.key)
        return str(error) if error is not None and error is not wanted.error else None


def _why_local(dirty: Dirty) -> str:
    return "no regular file" if dirty.kind is Kind.SPECIAL else "must-cache"
