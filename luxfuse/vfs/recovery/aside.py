"""Keeps files in the recovered directory that were never promised, or that the store cannot hold."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.core import names as naming
from luxfuse.errors import StoreError
from luxfuse.index.journal import DeleteRecord, FileRecord, Journal
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.tiers.directory import CANNOT_WRITE
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.contents import JournalContents
from luxfuse.vfs.recovery.in_store import has_other
from luxfuse.vfs.recovery.places import JournalPlaces

log = logging.getLogger(__name__)


class Aside:
    """Sets files aside that are not uploaded, and lets their names show the objects of the store."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        places: JournalPlaces,
        contents: JournalContents,
        journal: Journal,
        staging: Staging,
        recovered: Recovered,
        store: Store,
        limits: naming.KeyLimits,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._places = places
        self._contents = contents
        self._journal = journal
        self._staging = staging
        self._recovered = recovered
        self._store = store
        self._limits = limits
        self.stay: set[int] = set()
        """Staging files of which nothing was promised, which could not be moved: the next run tries it again."""

    def refusal(self, record: FileRecord) -> str | None:
        """Say why the store can never hold a file, None if it can. An earlier version of luxfuse asked too late."""
        if record.kind is Kind.SPECIAL or record.mode is WriteMode.MUST_CACHE:
            return None
        return naming.too_long(record.key, self._limits) or naming.not_taken(record.key, self._limits)

    async def give_up(self, number: int, record: FileRecord, refusal: str) -> None:
        """Keep a file that can never go to the store, and take its name away."""
        kept = await trio.to_thread.run_sync(self._keep_refused, number, record)
        log.warning(
            "%r can never be brought to the under-store: %s; %s",
            record.key,
            refusal,
            f"what there was of it is {kept}" if kept else "there was nothing in it",
        )
        parent, name = self._places.place(record.key)
        self._names.listings.forget(parent)
        self._places.erase(parent, name, record.key)
        self._journal.drop_file(number)
        reached("recover.refused")

    async def give_way(self, number: int, record: FileRecord) -> int:
        """Keep a content of which the name is another one's that was taken up; returns 1, or 0 if it has none."""
        kept = await trio.to_thread.run_sync(self._keep_refused, number, record)
        log.warning(
            "%r was left twice by the last run; %s",
            record.key,
            f"one of them is {kept}" if kept else "there was nothing in one of them",
        )
        self._journal.drop_file(number)
        return int(kept is not None)

    async def set_aside(self, number: int, record: FileRecord) -> int:
        """A file that was never closed: keep its content, and let the name show the object of the store."""
        removed = record.doomed and not await self._has_other(record)
        parent, name = self._places.place(record.key)
        entry = self._names.get(parent, name)
        if removed:
            self._journal.put_delete(record.key, DeleteRecord(record.expect, 0, time.time()))
        elif entry is not None and entry.inode == record.inode:
            if record.expect:
                self._namespace.belief.expire(entry.inode)
            else:
                self._names.erase(parent, name)
                self._names.listings.forget(parent)
        self._journal.drop_file(number)
        reached("recover.dropped")
        return await self.keep(number, record.key) if self._contents.is_there(number, record) else 0

    async def _has_other(self, record: FileRecord) -> bool:
        try:
            return await has_other(self._store, record)
        except StoreError:
            return False  # it is looked at again before the object is removed

    async def keep(self, number: int, key: str, *, required: bool = False) -> int:
        """Move a staging file to the recovered directory, unless it is empty; returns how many were moved: 1 or 0.

        Where a disk is full or read-only it stays, but raises OSError if it is ``required`` that it goes.
        """
        path = self._staging.path_of(number)
        try:
            if path.stat().st_size == 0:
                self._staging.discard(number)
                return 0
        except FileNotFoundError:
            return 0
        try:
            kept = await trio.to_thread.run_sync(self._recovered.keep_staging, self._staging, number, key)
        except OSError as exc:
            if required or exc.errno not in CANNOT_WRITE:
                raise
            self.stay.add(number)
            log.warning(
                "%r was being written when the last run ended; what there was of it stays where it is: %s", key, exc
            )
            return 0
        log.warning("%r was being written when the last run ended; what there was of it is %s", key, kept)
        return 1

    def _keep_refused(self, number: int, record: FileRecord) -> Path | None:
        """Move a content to the recovered directory, if there is any. Blocks."""
        if record.kind is not Kind.FILE:
            target = self._journal.inline(number)
            return self._recovered.keep_bytes(target, record.key) if target else None
        there = self._contents.is_there(number, record)
        content = self._contents.open(number, record, is_open=False) if there else None
        if content is None:
            return None
        empty = content.size == 0
        content.close()
        if empty:
            self._staging.discard(number)
            return None
        return self._recovered.keep_staging(self._staging, number, record.key)
