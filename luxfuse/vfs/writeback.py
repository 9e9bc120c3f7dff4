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
from collections.abc import Callable, Iterator

import trio

from luxfuse.cache.together import together
from luxfuse.core import names as naming
from luxfuse.core.writeback import LONGEST_OUTAGE_RETRY_S, LONGEST_RETRY_S, retry_delay_s
from luxfuse.errors import LuxError, NotFound, StoreError, StoreUnavailable, Unforeseen
from luxfuse.index.journal import DeleteRecord, Journal, directories_of
from luxfuse.index.names import ROOT_INODE
from luxfuse.steps import reached
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.base import ABSENT
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.errors import Conflict, Replaced, Stale
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.pushing import Keeper, Pusher
from luxfuse.vfs.turns import Turns

log = logging.getLogger(__name__)

WRITE_BACK_DELAY_S = 1.0
"""How long a closed file waits in `async-through`: what is renamed or removed meanwhile needs fewer requests."""
POSTPONED_S = 4.0
"""How much longer it waits while others are being closed, so that pushes do not slow down who makes many files."""
WARN_INTERVAL_S = 60.0
CONCURRENT_PUSHES = 32
MOST_PUSHES = 1024
"""With those that the bandwidth limit of a rule holds back."""
DELETE_BATCH = 500
URGENT_RETRY_S = 5.0
POLL_S = 0.25
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
        store: Store,
        journal: Journal,
        pusher: Pusher,
        is_read: Callable[[str], bool],
        nursery: trio.Nursery,
    ) -> None:
        """``is_read``: whether a removed object is still read by somebody who has it open."""
        self._namespace = namespace
        self._entries = entries
        self._store = store
        self._journal = journal
        self.pusher = pusher
        self.is_read = is_read
        self._keeper: Keeper
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
        self._frozen: dict[str, Freeze] = {}

    def connect(self, keeper: Keeper) -> None:
        """Use the one that has the contents: it pushes them by us."""
        self._keeper = keeper
        self.pusher.connect(keeper)

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
                            await self.pusher.push(dirty)
                            pushes += 1
            except (LuxError, OSError) as exc:
                if dirty.place is not None:  # else it was removed meanwhile
                    dirty.tries.refused(exc if isinstance(exc, LuxError) else StoreError(str(exc)))
                    self.failures += 1
                    raise
            dirty.pushed()
        self._keeper.publish(dirty)

    async def landed(self, dirty: Dirty) -> None:
        """Wait until a push of the entry that is on its way is over."""
        async with dirty.lock:
            pass
        self._keeper.publish(dirty)  # which came to nothing while we had the lock

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
                await self._keeper.complete(dirty)
        await self.secure_stored(key, changed)

    async def secure_stored(self, key: str, changed: Dirty | None = None) -> None:
        """The part of `spare` that is about what was promised. Raises OSError."""
        for dirty in self._entries.stored_under(key):
            record = self._journal.files.get(dirty.number)
            if dirty is not changed and record is not None and not record.closed:
                await self._keeper.secure(dirty)

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
            self._keeper.publish(dirty)  # nothing is tried again
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


def is_at_or_below(key: str, path: str) -> bool:
    """Whether an object's key is that of a file, directory or symlink ``path``, or of something in it; "": everything."""
    if not path or key == path:
        return True
    return key.startswith(path + "/") or key == path + naming.SYMLINK_SUFFIX
