"""Removing the files of objects from one cache directory, many in one turn of a thread, and then their records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from luxfuse.cache.placing import Holder
from luxfuse.cache.shared import Shared
from luxfuse.core.ledger import Ledger
from luxfuse.index.objects import Objects
from luxfuse.tiers.directory import CacheDirectory


class Removed(NamedTuple):
    """What came of it: how many files went, their bytes, and whether none stayed."""

    files: int
    freed_bytes: int
    complete: bool


class Removal:
    """Removes files of one cache directory."""

    def __init__(
        self,
        directory: CacheDirectory,
        number: int,
        *,
        objects: Objects,
        shared: Shared,
        holder: Holder,
        ledger: Ledger,
        on_failure: Callable[[OSError], None],
    ) -> None:
        """``number``: of the directory in the index."""
        self._directory = directory
        self._number = number
        self._objects = objects
        self._shared = shared
        self._holder = holder
        self._ledger = ledger
        self._on_failure = on_failure

    async def remove(self, oids: Sequence[bytes]) -> Removed:
        """Remove files in one turn of a thread, then their records. All are removing from now on.

        The caller made sure that nobody uses them, and that they are few enough for their readers to wait for all.
        After a crash in between, a record is one of a lost file. A file that cannot be removed stays, and with it
        its record; so do those after it.
        """
        left: list[bytes] = []
        gone, freed_bytes = 0, 0
        error: OSError | None = None
        try:
            for oid in oids:
                self._shared.removing[oid] = trio.Event()
                left.append(oid)
                if self._is_elsewhere(oid):
                    self._shared.strays.add(oid)
            if left:
                gone, error = await trio.to_thread.run_sync(self._unlink, oids)
            freed_bytes = self._forget(oids[:gone], left)
            if error is not None:
                self._on_failure(error)
        finally:
            with contextlib.ExitStack() as each:  # none is forgotten where the index fails for another one
                for oid in reversed(left):
                    each.callback(self._end, oid, removed=False)
        return Removed(gone, freed_bytes, complete=error is None)

    def _unlink(self, oids: Sequence[bytes]) -> tuple[int, OSError | None]:
        """Remove files; returns how many went, and why no more."""
        for number, oid in enumerate(oids):
            try:
                self._directory.remove(oid)
            except OSError as exc:
                return number, exc
        return len(oids), None

    def _is_elsewhere(self, oid: bytes) -> bool:
        return self._objects.directory_of(oid) not in (None, self._number)

    def _forget(self, oids: Sequence[bytes], left: list[bytes]) -> int:
        """Files are gone, and so are their records, if they are of here; returns the bytes freed.

        They are taken out of ``left``. Those of elsewhere were left here when their objects moved, or while the directory
        was away.
        """
        elsewhere, freed_bytes = set(oids), 0
        try:
            # Records that must stay are of lost files, and still count.
            elsewhere, freed_bytes = self._objects.drop_in(self._number, oids)
            self._ledger.free(freed_bytes)
        finally:
            with contextlib.ExitStack() as each:  # as above
                for oid in reversed(oids):
                    left.remove(oid)
                    each.callback(self._end, oid, removed=oid not in elsewhere)
        return freed_bytes

    def _end(self, oid: bytes, *, removed: bool) -> None:
        event = self._shared.removing.pop(oid)
        self._shared.strays.discard(oid)
        try:
            self._holder.removal_ended(oid, removed)
        finally:
            event.set()
