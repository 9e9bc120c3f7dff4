"""Carries on with the deletes of the last run: their names stay gone, and so do directories that have nothing else."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection

import trio

from luxfuse.cache.together import together
from luxfuse.core.names import directories_of
from luxfuse.errors import NotFound, StoreError
from luxfuse.index.journal import Journal
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.deletes import DELETE_BATCH, Deletes
from luxfuse.vfs.dirty import DirtyEntries
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.places import JournalPlaces
from luxfuse.vfs.replaced import CONCURRENT_HEADS, of_others
from luxfuse.vfs.small_pushes import MARKED

log = logging.getLogger(__name__)


class UnfinishedDeletes:
    """The deletes that the journal has."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        places: JournalPlaces,
        entries: DirtyEntries,
        journal: Journal,
        deletes: Deletes,
        store: Store,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._places = places
        self._entries = entries
        self._journal = journal
        self._deletes = deletes
        self._store = store

    async def carry_on(self) -> None:
        """Hold the names of those that are left, and make them in the background."""
        gone = await self._gone_directories()
        for key in sorted(self._journal.deletes, reverse=True):  # entries of a directory before the directory
            self._resume(key, gone)
            reached("recover.delete")
        await self._show_others(gone)

    async def make_what_waits_for_nothing(self, read: Collection[str]) -> None:
        """Make as many deletes as can be made now, so that their names need not be held; not of keys that are ``read``."""
        deletes = self._journal.deletes.items()
        frozen = self._deletes.is_frozen
        ready = sorted((k for k, d in deletes if not (self._journal.is_waiting(d) or k in read or frozen(k))), reverse=True)
        try:
            for start in range(0, len(ready), DELETE_BATCH):
                batch = ready[start : start + DELETE_BATCH]
                ours = await self._not_replaced(batch)
                failures = await self._store.delete(ours) if ours else {}
                reached("recover.deleted")
                for key in set(batch) - failures.keys():
                    self._journal.drop_delete(key)
                    self._places.forget_listing(key)
        except StoreError as exc:
            log.info("deletes of the last run cannot be made yet: %s", exc)

    async def _not_replaced(self, keys: list[str]) -> list[str]:
        """Leave out objects that somebody else has written anew since they were removed here, and markers with content."""
        deletes = {key: self._journal.deletes[key] for key in keys}
        replaced = await of_others(self._store, deletes)
        limiter = trio.CapacityLimiter(CONCURRENT_HEADS)

        async def ask(key: str) -> None:
            async with limiter:
                if await self._deletes.content_of_marker(key):
                    replaced.add(key)

        async with together() as start:
            for key in keys:
                if key.endswith("/") and not self._store.abilities.hierarchical:
                    start(ask, key)
        return [key for key in keys if key not in replaced]

    async def _gone_directories(self) -> set[str]:
        """Return the key prefixes of directories of which the store has only objects that are to be deleted."""
        gone: set[str] = set()
        promised = [record.key for record in self._namespace.unfinished.promises.values()]
        keys = [*promised, *(dirty.key for dirty in self._entries)]
        changed = {prefix for key in keys for prefix in (*directories_of(key), key)}
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

    def _resume(self, key: str, gone: set[str]) -> None:
        above = next((prefix for prefix in directories_of(key) if prefix in gone), None)
        if above is not None:
            place = self._places.place(above)
            self._namespace.hold(None, *place)
            self._places.erase(*place, above)
            self._deletes.resume(key, None)
            return
        place = self._places.place(key)
        self._namespace.hold(None, *place)
        if not self._is_promised(*place):
            self._places.erase(*place, key)
        self._deletes.resume(key, place)

    def _is_promised(self, parent: int, name: bytes) -> bool:
        """Whether a name is that of what was promised: it is dirty again, or waits to be."""
        if self._namespace.unfinished.has_promise(parent, name):
            return True
        entry = self._names.get(parent, name)
        return entry is not None and self._entries.get(entry.inode) is not None

    async def _show_others(self, gone: set[str]) -> None:
        """The names of deletes are held, so that nobody asks for them: show what else stands for one in the store.

        What the index has may be older than the last commits before a kill.
        """
        try:
            for key in self._journal.deletes:
                if gone.intersection(directories_of(key)):
                    continue
                parent, name = self._places.place(key)
                if not self._is_promised(parent, name):
                    await self._show(parent, name)
        except StoreError as exc:
            log.info("what stands for names that are to be removed cannot be asked for yet: %s", exc)

    async def _show(self, parent: int, name: bytes) -> None:
        for kind in (Kind.DIRECTORY, Kind.FILE, Kind.SYMLINK):
            key = self._namespace.places.key(parent, name, kind)
            if key in self._journal.deletes:
                continue
            info = None
            if kind is not Kind.DIRECTORY:
                with contextlib.suppress(NotFound):
                    info = await self._store.head(key)
            elif await self._store.has_prefix(key):
                info = ObjectInfo(key, 0, "", 0)
            known = self._names.get(parent, name)
            if self._is_promised(parent, name):
                return  # it was taken up meanwhile, as its rename was made
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


def _above(prefix: str) -> str:
    return prefix[: prefix.rstrip("/").rfind("/") + 1]
