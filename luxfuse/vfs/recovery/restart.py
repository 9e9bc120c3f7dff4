"""A restart takes up the journal before the tree answers.

1. Names that were removed or moved here, which the index does not have yet, are removed or moved (`index.name_changes`).
2. Multipart uploads that were open are aborted behind the mount, but those of which parts have arrived of a file that is
   to be uploaded.
3. Moves are finished: here at once; in the store, where objects that are still under the old key are copied and removed,
   behind the mount if that takes long (`moves`). Their names wait for it.
4. Deletes are carried on: their names stay gone, and so do directories of which the store has nothing else.
5. Files that the store can never hold, because their keys are too long, are kept in the recovered directory.
6. Files that were closed or synced, or that programs have open (`opens`), are dirty again, and are uploaded. Those that
   were not have never been promised to anybody: their content is kept in the recovered directory, and the name shows the
   object of the store.
7. What cannot be taken up yet, as the cache disk cannot be written or the store does not say what it has, waits, and so
   does its name (`later`).

The journal alone is believed: names that the index lacks are made anew.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import trio

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.recovered import Recovered
from luxfuse.core import names as naming
from luxfuse.errors import LuxError, StoreError, StoreUnavailable
from luxfuse.index.journal import FileRecord, Journal
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.files import Files
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.open_directories import OpenDirectories
from luxfuse.vfs.promises import Promises
from luxfuse.vfs.recovery.aside import Aside
from luxfuse.vfs.recovery.contents import JournalContents
from luxfuse.vfs.recovery.deletes import UnfinishedDeletes
from luxfuse.vfs.recovery.files import PromisedFiles, Superseded
from luxfuse.vfs.recovery.in_store import was_pushed
from luxfuse.vfs.recovery.later import Later
from luxfuse.vfs.recovery.moves import UnfinishedMoves
from luxfuse.vfs.recovery.opens import InheritedOpens, is_left
from luxfuse.vfs.recovery.places import JournalPlaces
from luxfuse.vfs.replicator import Replicator
from luxfuse.vfs.will import Inherited, Will
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

ABORT_DEADLINE_S = 5.0
MOVES_PATIENCE_S = 3.0
"""For how long the tree waits for the store to finish moves: as long as it takes to doubt that the store is there."""
RESENT_S = 15.0
"""So long after recovery the kernel has sent all requests again, and they have begun. One that comes later still finds the
file as the mount shows it, and not what was closed last."""


@dataclass(slots=True)
class Outcome:
    """How many files are uploaded now, deletes and moves were found, and files are kept in the recovered directory.

    ``lost``: files whose content was promised, but is not on the disk any more: somebody has emptied the cache directory.
    """

    files: int = 0
    deletes: int = 0
    moves: int = 0
    recovered: int = 0
    lost: int = 0
    refused: int = 0
    """Files, directories and symlinks that the store can never hold."""


class Recovery:
    """Reads the journal of the last run once, at the beginning of this one."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        entries: DirtyEntries,
        journal: Journal,
        staging: Staging,
        recovered: Recovered,
        writeback: WriteBack,
        cache: PageCache,
        store: Store,
        limits: naming.KeyLimits,
        replicator: Replicator | None,
        will: Will,
        inherited: Inherited | None,
        files: Files,
        directories: OpenDirectories,
        promises: Promises,
        nursery: trio.Nursery,
    ) -> None:
        """``replicator``: of the nodes that may hold what was promised, and is not here any more.

        ``inherited``: what programs have open, if the daemon was killed and this is its successor.
        """
        self._nameless: set[int] = set()
        self._names = names
        self._entries = entries
        self._journal = journal
        self._staging = staging
        self._store = store
        places = JournalPlaces(namespace, names, entries)
        self._is_open = inherited.is_open if inherited is not None else _nothing_is_open
        self._contents = contents = JournalContents(journal, staging, cache, intact=inherited is not None)
        self._moves = UnfinishedMoves(
            namespace=namespace,
            names=names,
            places=places,
            entries=entries,
            journal=journal,
            staging=staging,
            contents=contents,
            store=store,
            writeback=writeback,
            recovered=recovered,
            nursery=nursery,
        )
        self._later = Later(
            namespace=namespace,
            names=names,
            places=places,
            entries=entries,
            staging=staging,
            files=files,
            frozen=writeback.frozen,
            must_wait=self._moves.waits,
            take_up=functools.partial(self._take_up, outcome=Outcome()),
        )
        self._moves.take_up_rest = self._later.try_again
        self._unfinished = namespace.unfinished
        self._nursery = nursery
        self._writeback = writeback
        self._promises = promises
        self._deletes = UnfinishedDeletes(
            namespace=namespace,
            names=names,
            places=places,
            entries=entries,
            journal=journal,
            deletes=writeback.deletes,
            store=store,
        )
        self._files = PromisedFiles(
            namespace=namespace,
            names=names,
            places=places,
            contents=contents,
            entries=entries,
            journal=journal,
            staging=staging,
            writeback=writeback,
            cache=cache,
            store=store,
            is_open=self._is_open,
            waits=self._moves.waits,
        )
        self._opens = (
            None
            if inherited is None
            else InheritedOpens(
                inherited=inherited,
                will=will,
                files=files,
                directories=directories,
                entries=entries,
                cache=cache,
                staging=staging,
                contents=contents,
                journal=journal,
            )
        )
        self._aside = Aside(
            namespace=namespace,
            names=names,
            places=places,
            contents=contents,
            journal=journal,
            staging=staging,
            recovered=recovered,
            store=store,
            limits=limits,
        )
        self._replicator = replicator

    async def run(self) -> Outcome:
        """Do all of it. Raises `StoreError`, OSError if the disk fails."""
        outcome = Outcome()
        if self._names.changes is not None:
            self._names.changes.make_again(self._names)
        outcome.moves = await self._moves.finish(MOVES_PATIENCE_S)
        outcome.deletes = len(self._journal.deletes)
        read = self._opens.removed_and_read() if self._opens is not None else {}
        await self._deletes.make_what_waits_for_nothing(read)
        # Directories first, outer ones before inner ones: what is in them may have been changed before they were made.
        records = self._journal.files.items()
        for number, record in sorted(records, key=lambda r: (r[1].kind is not Kind.DIRECTORY, r[1].key, r[0])):
            await self._place(number, record, outcome)
        await self._deletes.make_what_waits_for_nothing(read)
        await self._deletes.carry_on()
        outcome.files = sum(dirty.must_push for dirty in self._entries)
        if self._opens is not None:
            self._nameless = self._opens.restore_nameless()
            self._opens.restore()
            self._nursery.start_soon(self._promise_what_is_left, self._opens.left())
        await self._sweep_staging(outcome)
        if self._later:
            self._nursery.start_soon(self._later.run)
        await self._journal.commit()
        reached("recover.committed")
        return outcome

    async def _place(self, number: int, record: FileRecord, outcome: Outcome) -> None:
        """Make a file of the journal dirty again, or set aside what there is of it; or let its name wait."""
        try:
            await self._take_up(number, record, outcome)
        except (LuxError, OSError) as exc:
            if not self._later.put_off(number, record, exc):
                raise

    async def _take_up(self, number: int, record: FileRecord, outcome: Outcome) -> None:
        self._staging.give_name_back(number)
        if refusal := self._aside.refusal(record):
            outcome.refused += 1
            await self._aside.give_up(number, record, refusal)
            return
        if record.closed and not self._is_open(record.inode) and self._contents.is_torn(number, record):
            outcome.recovered += await self._aside.keep(number, record.key, required=True)
            reached("recover.torn")
        try:
            resumed = await self._files.resume(number, record)
        except Superseded:
            outcome.recovered += await self._aside.give_way(number, record)
            return
        if resumed:
            reached("recover.resumed")
        else:
            if record.closed and self._moves.waits(record.key):
                raise StoreUnavailable("its rename is not finished yet")
            # Content that the store had when this was noted is gone from it since: removed, here or by others.
            if record.closed and record.content and not await was_pushed(self._store, record):
                outcome.lost += 1
                log.error("%r was not in the under-store yet, and is not in the cache directory any more", record.key)
                if record.holders and self._replicator is not None:
                    self._replicator.note_lost(number)
                    return
            outcome.recovered += await self._aside.set_aside(number, record)
            reached("recover.set-aside")

    async def _promise_what_is_left(self, left: list[Dirty]) -> None:
        """Promise files as the mount shows them whose opens for writing have not come again: nobody will close them.

        Not at once: one that comes is to find what was promised before it.
        """
        await trio.sleep(RESENT_S)
        for dirty in left:
            async with dirty.lock:  # it is under way meanwhile, for `persist` too, and no push ends it
                if not is_left(dirty):
                    continue
                try:
                    await self._promises.secure(dirty)
                except (LuxError, OSError):
                    log.exception("%r is not safe on disk", dirty.key)
                    self._writeback.schedule(dirty)
            self._promises.ended(dirty)  # it was not published while it had the lock

    async def _sweep_staging(self, outcome: Outcome) -> None:
        """Keep staging files that the journal does not know, and remove those that were done with."""
        known = {d.number for d in self._entries} | self._nameless | self._journal.files.keys() | self._aside.stay
        for number in list(self._staging.stored()):
            if number not in known and self._staging.was_retired(number):
                self._staging.discard(number)
            elif number not in known:
                outcome.recovered += await self._aside.keep(number, f"unknown-{number:x}")

    def old_uploads(self) -> set[tuple[str, str]]:
        """Return the uploads, key and id, of the last run that are not gone on with; before new ones are begun."""
        resumed = {(d.source.open.key, d.source.open.upload) for d in self._entries if d.source and d.source.open}
        wait = {record.key for record in self._unfinished.promises.values()}
        return {each for each in self._journal.uploads.open - resumed if each[0] not in wait}

    async def abort_uploads(self, uploads: set[tuple[str, str]]) -> None:
        """Drop uploads, behind the mount; those that cannot be dropped now are left to the next one."""
        for key, upload in uploads:
            try:
                with trio.move_on_after(ABORT_DEADLINE_S):
                    await self._store.abort_upload(key, upload)
                    reached("recover.aborted")
                    self._journal.uploads.over(key, upload)
            except StoreError as exc:
                log.info("an unfinished upload of %r could not be aborted: %s", key, exc)


def _nothing_is_open(_inode: int) -> bool:
    return False
