"""Bringing dirty entries to the under-store: at once if a program waits for it, else in the background.

One push of an entry at a time (`Dirty.lock`), one change of a key at a time (`Turns`): so a delete never overtakes the
upload before it, nor the other way round. A push that fails leaves the entry dirty; it is tried again, with growing
pauses, for ever: only success, an unlink, or the operator ends it. The pauses begin anew when the file is changed; `hurry`
makes the next try early, and no more than that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from luxfuse.core.due import Due
from luxfuse.core.writeback import (
    DEAR_ATTEMPTS,
    POSTPONED_S,
    due_until,
    longest_retry_s,
    retry_delay_s,
)
from luxfuse.errors import LuxError, StoreError, StoreUnavailable, Unforeseen, UploadsForgotten
from luxfuse.index.journal import Journal
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.deletes import Deletes, is_at_or_below
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import Conflict, Replaced
from luxfuse.vfs.frozen import FrozenKeys
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.pace import CONCURRENT_PUSHES, WRITE_BACK_DELAY_S, Pace
from luxfuse.vfs.pushing import Publishes, Pusher
from luxfuse.vfs.turns import Turns

log = logging.getLogger(__name__)

WARN_INTERVAL_S = 60.0
MOST_PUSHES = 1024
"""With those that the bandwidth limit of a rule holds back."""
BACK_S = 2.0
"""So long after the store is back, what failed meanwhile is tried again."""
POLL_S = 0.25
PUSHES = 2
"""Of one file in a row: the content, and its attributes where they could not go with it."""


class Keeper(Protocol):
    """Makes contents durable here; `Promises` does."""

    async def complete(self, dirty: Dirty) -> None:
        """Make a file independent of an object that is about to go, durably. Raises `StoreError`, OSError."""

    async def secure(self, dirty: Dirty) -> None:
        """Make a file durable here as it is now, as the content that was promised last is about to go. Raises OSError."""


class WriteBack:
    """Pushes the dirty entries of one mount."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        entries: DirtyEntries,
        store: Store,
        journal: Journal,
        pusher: Pusher,
        is_read: Callable[[str], bool],
        nursery: trio.Nursery,
    ) -> None:
        """``is_read``: whether a removed object is still open for reading."""
        self._namespace = namespace
        self._entries = entries
        self._store = store
        self._journal = journal
        self.pusher = pusher
        self._publisher: Publishes
        self._keeper: Keeper
        self._nursery = nursery
        self._due: Due[Dirty] = Due()
        self._quiet_s = 0.0
        """When it is to be thought that nobody makes files just now."""
        self._pushing: set[Dirty] = set()
        self._turns: Turns[str] = Turns()
        """To change what the store has under a key."""
        self.pace = Pace()
        self._warn_again_s = 0.0
        self.frozen = FrozenKeys(store, self.pace)
        self.deletes = Deletes(
            namespace=namespace,
            entries=entries,
            store=store,
            journal=journal,
            turns=self._turns,
            pace=self.pace,
            complete_files_over=self.complete_files_over,
            is_read=is_read,
            is_frozen=self.frozen.covers,
            nursery=nursery,
        )
        store.presence.on_back.append(self._try_again)

    def connect(self, publisher: Publishes, keeper: Keeper) -> None:
        """Give it the parts that need write-back themselves: pushed files are published, and some are pushed for that."""
        self._publisher, self._keeper = publisher, keeper
        self.pusher.connect(publisher)

    # -- now

    async def push(self, dirty: Dirty, *, first: bool = False) -> None:
        """Bring an entry to the store, unless it is there. Raises `StoreError`, OSError; it then stays dirty.

        ``first``: as in `FrozenKeys.settled`.
        """
        if not first:
            await self.frozen.may_begin(dirty.key)
        async with dirty.lock:
            if dirty.conflict is not None and dirty.place is not None:
                raise dirty.conflict
            try:
                pushes = 0
                while dirty.must_push and pushes < PUSHES and not (pushes and dirty.is_written_anew):
                    await self.frozen.thawed(dirty.key, alone=True)
                    key = dirty.key
                    async with self._turns.of([key]):
                        if key == dirty.key:  # else it was renamed meanwhile
                            await self.complete_files_over(key, dirty)
                        if key == dirty.key and dirty.must_push:
                            await self.pusher.push(dirty)
                            pushes += 1
            except (LuxError, OSError) as exc:
                if dirty.place is not None:  # else it was removed meanwhile
                    dirty.tries.refused(exc if isinstance(exc, LuxError) else StoreError(str(exc)))
                    self.pace.failures += 1
                    raise
            dirty.pushed()
        self._publisher.publish(dirty)

    async def landed(self, dirty: Dirty) -> None:
        """Wait until a push of the entry that is on its way is over."""
        async with dirty.lock:
            pass
        self._publisher.publish(dirty)  # which came to nothing while we had the lock

    async def not_in_flight(self, inode: int) -> Dirty | None:
        """Wait until no push of an inode is on its way; returns its dirty entry, None if it is not dirty."""
        while (dirty := self._entries.get(inode)) is not None and dirty.lock.locked():
            await self.landed(dirty)
        return dirty

    async def finish_below(self, *prefixes: str) -> None:
        """Wait until no push below ``prefixes`` is on its way and every delete there is made. Raises `StoreError`."""
        while True:
            pushing = next((d for d in self._entries if d.key.startswith(prefixes) and d.lock.locked()), None)
            if pushing is not None:
                await self.landed(pushing)
                continue
            if not await self.deletes.make_below(*prefixes):
                return

    async def complete_files_over(self, key: str, changed: Dirty | None = None) -> None:
        """Complete the files that lie over an object, as it is about to be replaced or removed. Raises `StoreError`.

        The journal on the disk may still promise what the object has: a restart would miss it.
        """
        for dirty in self._entries.based_on(key):
            if dirty is not changed:
                await self._keeper.complete(dirty)
        await self.secure_stored(key, changed)
        if key in self._journal.withdrawn:
            await self._journal.commit_made()

    async def secure_stored(self, key: str, changed: Dirty | None = None) -> None:
        """The part of `complete_files_over` that is about promises. Raises OSError."""
        for dirty in self._entries.stored_under(key):
            record = self._journal.files.get(dirty.number)
            if dirty is not changed and record is not None and not (record.closed and dirty.is_promised_here):
                await self._keeper.secure(dirty)

    # -- later

    def schedule(self, dirty: Dirty, delay_s: float = WRITE_BACK_DELAY_S) -> None:
        """Push an entry in the background after a while."""
        idle = not self._due and not self.deletes.planned
        now = trio.current_time()
        self._quiet_s = now + self.pace.delay_s
        if not self._failed_as_it_is(dirty):
            self._due.put(dirty, now + (0.0 if self.pace.urgent else delay_s))
        elif dirty not in self._due and dirty not in self._pushing:  # else its next try is planned, or will be
            self._due.put(dirty, now + self._pause_s(dirty))
        if idle or self.pace.urgent:  # else `run` looks again soon
            self.pace.wake()

    def is_under_way(self, dirty: Dirty) -> bool:
        """Whether an entry is being pushed, or is to be."""
        return dirty in self._due or dirty in self._pushing or dirty.lock.locked()

    def forget(self, dirty: Dirty) -> None:
        """An entry need not be pushed any more."""
        self._due.drop(dirty)

    async def run(self) -> None:
        """Push entries that are due, until cancelled."""
        while True:
            self._start_due()
            await self.pace.rest(POLL_S if self._due or self.deletes.planned else 3600)

    def _start_due(self) -> None:
        now = trio.current_time()
        until = due_until(now, self._quiet_s, urgent=self.pace.urgent)
        most = min(CONCURRENT_PUSHES + self._store.held_back("put"), MOST_PUSHES)
        while len(self._pushing) < most and (dirty := self._due.pop(until)) is not None:
            if dirty in self._pushing or dirty.is_written_anew or self.must_wait(dirty):
                self._due.put(dirty, now + POLL_S)
            else:
                self._pushing.add(dirty)
                self._nursery.start_soon(self._push_quietly, dirty)
        self.deletes.start_due(now)

    def must_wait(self, dirty: Dirty) -> bool:
        """Whether a push would wait for a request that may be carried out yet, in the place of others."""
        if not self._store.late:
            return False
        able = self._store.abilities
        try:
            contents = dirty.source is not None and dirty.content_changed(dirty.uploaded)
        except OSError:
            return False  # the push says so
        conditional = able.conditional and able.multipart and contents
        return self._store.must_wait([dirty.key], conditional=conditional)

    def _failed_as_it_is(self, dirty: Dirty) -> bool:
        """Whether the last try failed, and nothing was changed since."""
        return dirty.tries.attempts > 0 and dirty.tries.have_failed(dirty.key, dirty.stamp)

    def _pause_s(self, dirty: Dirty) -> float:
        """Return how long to wait before the next try. An outage costs little to be looked at, and somebody may wait."""
        outage = isinstance(dirty.tries.error, StoreUnavailable) and not self._store.reachable
        attempts = dirty.tries.attempts + (DEAR_ATTEMPTS if isinstance(dirty.tries.error, UploadsForgotten) else 0)
        return retry_delay_s(attempts, longest_retry_s(outage=outage, urgent=self.pace.urgent), self.pace.rng)

    def _note_failed(self, dirty: Dirty, error: LuxError) -> None:
        """Take note of a try in the background that failed, and plan the next one, later the more have failed."""
        try:
            stamp = dirty.stamp
        except OSError:
            stamp = None  # it cannot be told whether it is changed later
        dirty.tries.refused_later(error, dirty.key, stamp)
        if not dirty.finished and dirty.place is not None:
            self._due.put(dirty, trio.current_time() + self._pause_s(dirty))
        if dirty.tries.count() == 1:
            self._warn("%r cannot be brought to the under-store yet: %s", dirty.key, error)

    def _try_again(self) -> None:
        """The store answers again: make the tries soon that failed because it did not.

        Not at once: requests that nobody waits for any more may reach it first, and are not to undo those that come later.
        """
        soon = trio.current_time() + BACK_S
        for dirty, due in self._due.items():
            error = dirty.tries.error
            if due > soon and isinstance(error, StoreUnavailable) and not isinstance(error, UploadsForgotten):
                self._due.put(dirty, soon)
        self.deletes.hurry("", soon, failed=True)
        self.pace.wake()

    def _warn(self, text: str, *arguments: object) -> None:
        """Log a warning, but not one for each file, and none in an outage, which has its own; `status` has the numbers."""
        now = trio.current_time()
        level = logging.WARNING if now >= self._warn_again_s and self._store.reachable else logging.INFO
        self._warn_again_s = max(self._warn_again_s, now + WARN_INTERVAL_S if level == logging.WARNING else 0.0)
        log.log(level, text, *arguments)

    async def _push_quietly(self, dirty: Dirty) -> None:
        if dirty.source is not None:
            dirty.source.retrying = dirty.tries.attempts > 0
        try:
            await self.push(dirty)
        except (Conflict, Replaced):
            self._publisher.publish(dirty)  # nothing is tried again
        except (LuxError, OSError) as exc:
            self._note_failed(dirty, exc if isinstance(exc, LuxError) else StoreError(str(exc)))
        except Exception as exc:
            log.exception("pushing %r failed in an unexpected way", dirty.key)
            self._note_failed(dirty, Unforeseen(f"internal error ({type(exc).__name__}: {exc}), see the log"))
        finally:
            if dirty.source is not None:
                dirty.source.retrying = False
            self._pushing.discard(dirty)
            self.pace.wake()

    async def copy(self, source: str, target: str, version: str | None, size: int) -> ObjectInfo:
        """Copy an object inside the store. Raises `StoreError`."""
        async with self._turns.of((source, target)):
            await self.complete_files_over(target)
            return await self._store.copy(source, target, version=version, size=size)

    # -- all of it

    @property
    def pending(self) -> int:
        """Number of entries, deletes and unfinished renames that the store does not have yet."""
        dirty = sum(1 for d in self._entries if d.must_push or d in self._pushing)
        return dirty + len(self._journal.deletes) + len(self._namespace.unfinished.renames)

    def hurry(self, prefix: str = "", *, failed: bool = True) -> None:
        """Push everything at or below a key at once, as far as it is closed; ``failed``: also what has failed lately."""
        now = trio.current_time()
        overdue = now - POSTPONED_S
        for dirty, due in self._due.items():
            if due > overdue and is_at_or_below(dirty.key, prefix) and (failed or dirty.tries.error is None):
                self._due.put(dirty, overdue)
        self.deletes.hurry(prefix, now, failed=failed)
        self.pace.wake()
