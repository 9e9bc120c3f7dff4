"""Removing objects: noted in the journal first, made in the background, tried again until it is done.

The name of an object that is to be deleted is held until then, and so are the directories above it that are removed, too:
the store would still show them.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from luxfuse.cache.together import together
from luxfuse.core import names as naming
from luxfuse.core.names import directories_of
from luxfuse.core.notices import Change, ChangeKind
from luxfuse.core.writeback import LONGEST_RETRY_S, URGENT_RETRY_S, retry_delay_s
from luxfuse.errors import NotFound, StoreError
from luxfuse.index.journal import DeleteRecord, Journal
from luxfuse.index.names import ROOT_INODE
from luxfuse.steps import reached
from luxfuse.types import ABSENT, Kind
from luxfuse.understore.retrying import Store, delete_patience
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.dirty_fields import NOTHING_UNHEARD, Unheard
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.pace import CONCURRENT_PUSHES, Pace
from luxfuse.vfs.replaced import of_others
from luxfuse.vfs.turns import Turns

log = logging.getLogger(__name__)

DELETE_BATCH = 500


class Leftover(NamedTuple):
    """What the store may have under a key whose object was removed here: ``version`` ("": nothing, None: not known).

    ``sent``: mtime in ns and size of contents of which no answer told whether they arrived over that version, or may yet.
    """

    version: str | None
    sent: tuple[tuple[int, int], ...] = ()

    @property
    def any(self) -> bool:
        """Whether there may be something."""
        return self.version != ABSENT or bool(self.sent)


NOTHING_LEFT = Leftover(ABSENT)


class Deletes:
    """The deletes of one mount that the store has not made yet."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        entries: DirtyEntries,
        store: Store,
        journal: Journal,
        turns: Turns[str],
        pace: Pace,
        complete_files_over: Callable[[str], Awaitable[None]],
        is_read: Callable[[str], bool],
        is_frozen: Callable[[str], bool],
        nursery: trio.Nursery,
    ) -> None:
        """``complete_files_over`` an object that goes; ``is_read``: whether somebody still reads it; ``is_frozen``: whether
        it is being moved."""
        self._namespace = namespace
        self._entries = entries
        self._store = store
        self._journal = journal
        self._turns = turns
        self._pace = pace
        self._complete_files_over = complete_files_over
        self.is_read = is_read
        self.is_frozen = is_frozen
        self._nursery = nursery
        self._due: dict[str, float] = {}
        self._deleting: set[str] = set()
        self._errors: dict[str, StoreError] = {}
        self._failures: dict[str, int] = {}
        """How often the delete of a key has failed, one time after the other."""
        self._waited: set[str] = set()
        """Those that had to wait, for the store or for a reader, say: somebody else may have the key by now."""
        self._copied: set[str] = set()
        """Those that a late copy of ours may have replaced: their version says nothing."""
        self._places: dict[str, tuple[int, bytes]] = {}

    @property
    def planned(self) -> bool:
        """Whether some are to be made."""
        return bool(self._due)

    # -- the journal's

    def pending(self, key: str) -> DeleteRecord | None:
        """Return the delete that is still to be made of a key."""
        return self._journal.deletes.get(key)

    def later(
        self, key: str, place: tuple[int, bytes], version: str | None, after: int = 0, unheard: Unheard = NOTHING_UNHEARD
    ) -> None:
        """Remove an object in the background; its name, which the caller holds, is settled then."""
        self._journal.put_delete(key, DeleteRecord(version, after, time.time(), *unheard))
        self.resume(key, place)

    def once_more(self, key: str, place: tuple[int, bytes], version: str | None) -> None:
        """As `later`, of an object that the store has not removed when it was told to."""
        self.later(key, place, version)
        self._waited.add(key)

    def hold_below(self, prefix: str, directory: int) -> None:
        """A directory was made where one was removed: hold the names in it of objects that are still to be deleted."""
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

    def resume(self, key: str, place: tuple[int, bytes] | None) -> None:
        """Carry on with a delete of the journal; ``place``: the name that is held, if it is not gone with its directory."""
        if place is not None:
            self._places[key] = place
        if not self._store.reachable:
            self._waited.add(key)
        self._due[key] = trio.current_time() + (0.0 if self._pace.urgent else self._pace.delay_s / 4)
        self._pace.wake()

    def reuse(self, key: str) -> Leftover:
        """Forget the delete of a key that is about to be used anew; returns what the store may have there yet."""
        record = self._journal.deletes.get(key)
        if record is None:
            return NOTHING_LEFT
        in_flight = key in self._deleting
        self._journal.drop_delete(key)
        self._settle_above(key)
        self._forget_tries(key)
        self._places.pop(key, None)
        if in_flight:
            return Leftover(None)
        return Leftover(record.was, record.sent) if record.version is None and record.sent else Leftover(record.version)

    # -- now

    async def now(self, keys: list[str]) -> None:
        """Remove objects. Raises `StoreError`: the first failure."""
        async with self._turns.of(keys):
            for key in keys:
                await self._complete_files_over(key)
            failures = await self._store.delete(keys)
        for error in failures.values():
            raise error

    async def make_noted(self, key: str) -> None:
        """Make a delete of the journal now; where the store does not take it, it is tried again later."""
        try:
            async with self._turns.of([key]):
                if key in self._journal.deletes:
                    await self._complete_files_over(key)
                    for error in (await self._store.delete([key])).values():
                        raise error
                    self._deleted(key)
        except StoreError as exc:
            log.warning("%r was replaced, but its object cannot be removed yet: %s", key, exc)
            self._errors[key] = exc

    async def make_below(self, *prefixes: str) -> bool:
        """Make those below ``prefixes`` now; False if there are none. What others have written since stays.

        Raises `StoreError`.
        """
        keys = [key for key in self._journal.deletes if key.startswith(prefixes)]
        if not keys:
            return False
        async with self._turns.of(keys):
            if self._store.must_wait(keys):
                for key in keys:
                    self._must_wait(key)
                await self._store.outlive(keys, f"DELETE below {prefixes[0]!r}", patience=delete_patience(len(keys)))
            await self._drop_of_filled(keys)
            await self._drop_of_others(keys)
        keys = [key for key in keys if key in self._journal.deletes]
        places = [self._places.get(key) for key in keys]
        if keys:
            await self.now(keys)
        for key, place in zip(keys, places, strict=True):
            if place is not None:
                self._places.setdefault(key, place)
            self._deleted(key)
        return True

    # -- in the background

    def start_due(self, now: float) -> None:
        """Make those that are due, unless some are being made."""
        if not self._deleting:
            ready = (key for key, due in self._due.items() if due <= now and self._may_be_made(key))
            self._deleting = set(itertools.islice(ready, DELETE_BATCH))
            if self._deleting:
                self._nursery.start_soon(self._make_quietly, list(self._deleting))

    def hurry(self, prefix: str, now: float, *, failed: bool) -> None:
        """Let those at or below a key be due; ``failed``: also those that have failed lately."""
        for key, due in self._due.items():
            if due > now and is_at_or_below(key, prefix) and (failed or key not in self._errors):
                self._due[key] = now

    def error(self, key: str) -> StoreError | None:
        """Return what the last try to remove an object failed with."""
        return self._errors.get(key)

    def _may_be_made(self, key: str) -> bool:
        """Whether a delete can be made now; one that cannot has had to wait."""
        record = self._journal.deletes.get(key)
        if record is None:
            return False
        if self.is_read(key) or self.is_frozen(key) or self._journal.is_waiting(record):
            self._waited.add(key)
            return False
        return not self._must_wait(key)

    def _must_wait(self, key: str) -> bool:
        """Whether a delete would wait for a request that may be carried out yet: what is seen before says nothing then."""
        if self._store.must_wait([key]):
            self._waited.add(key)
            if self._store.late.copies_to(key):
                self._copied.add(key)
            return True
        return False

    async def _make_quietly(self, keys: list[str]) -> None:
        delay_s = 0.0
        try:
            async with self._turns.of(keys):
                wanted = [key for key in keys if key in self._journal.deletes and not self._must_wait(key)]
                for key in wanted:
                    await self._complete_files_over(key)
                await self._drop_of_filled(wanted)
                await self._drop_of_others(wanted)
                wanted = [key for key in wanted if key in self._journal.deletes]
                # Children before their directories, where those exist by themselves.
                failures = await self._store.delete(sorted(wanted, reverse=True)) if wanted else {}
                reached("delete.stored")
                for key in wanted:
                    if key not in failures:
                        self._deleted(key)
                for key, error in failures.items():
                    log.info("%r cannot be removed yet: %s", key, error)
                    self._failed(key, error)
        except StoreError as exc:
            log.info("%d objects cannot be removed yet: %s", len(keys), exc)
            self._pace.failures += 1
            for key in keys:
                self._failed(key, exc)
        except Exception:
            log.exception("removing objects failed in an unexpected way")
            delay_s = LONGEST_RETRY_S
        finally:
            if delay_s:
                for key in keys:
                    if key in self._due:
                        self._due[key] = trio.current_time() + delay_s
            self._deleting = set()
            self._pace.wake()

    def _failed(self, key: str, error: StoreError) -> None:
        """Take note of a delete that failed, and plan the next try, later the more have failed."""
        if key not in self._due:
            return  # the name was made anew meanwhile
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._errors[key] = error
        self._waited.add(key)
        longest_s = URGENT_RETRY_S if self._pace.urgent else LONGEST_RETRY_S
        self._due[key] = trio.current_time() + retry_delay_s(failures, longest_s, self._pace.rng)

    def _forget_tries(self, key: str) -> None:
        """An object is not to be removed any more: nor does it matter what became of that so far."""
        self._due.pop(key, None)
        self._errors.pop(key, None)
        self._failures.pop(key, None)
        self._waited.discard(key)
        self._copied.discard(key)

    def _deleted(self, key: str) -> None:
        self._forget_tries(key)
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

    async def _drop_of_filled(self, keys: list[str]) -> None:
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

    async def _drop_of_others(self, keys: list[str]) -> None:
        """Forget deletes that had to wait where somebody else has the key by now. Raises `StoreError`."""
        records = {key: record for key in keys if (record := self._journal.deletes.get(key)) is not None}
        told = {key: record for key, record in records.items() if key not in self._copied}
        waited = {key: record for key, record in told.items() if key in self._waited or record.sent}
        for key in await of_others(self._store, waited):
            if self._journal.deletes.get(key) != waited[key]:
                continue  # the name was made anew meanwhile
            log.warning("%r was written by somebody else since it was removed here: it stays", key)
            self._deleted(key)
            self._namespace.news.changed_elsewhere(Change(key, ChangeKind.GONE))  # so its directory is listed again

    async def content_of_marker(self, key: str) -> int:
        """Return how many bytes the object of a directory has, which removing the directory would destroy."""
        if not key.endswith("/") or self._store.abilities.hierarchical:
            return 0
        try:
            return (await self._store.head(key)).size
        except NotFound:
            return 0


def is_at_or_below(key: str, path: str) -> bool:
    """Whether an object's key is that of a file, directory or symlink ``path``, or of something in it; "": everything."""
    if not path or key == path:
        return True
    return key.startswith(path + "/") or key == path + naming.SYMLINK_SUFFIX
