"""``luxfuse check``: whether what lies on disk is what is recorded of it; and, if so asked, sets it right.

Nobody is asked in the under-store: whether it still has the versions that are cached does not matter here. What is not in
the under-store yet is never changed, only told of.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import trio

from luxfuse.cache.check import FileCheck, Verdict
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.cache.sweep import sweep_moves
from luxfuse.core.names import path_of
from luxfuse.core.spans import ranges_text
from luxfuse.core.units import format_size
from luxfuse.errors import LuxError
from luxfuse.index.audit import Auditor
from luxfuse.index.journal import Journal
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.objects import Objects
from luxfuse.index.tree_audit import TreeAuditor
from luxfuse.orders.index_check import IndexCheck, too_much
from luxfuse.orders.inventory import Inventory
from luxfuse.tiers.staging import Staging
from luxfuse.vfs.dirty import Dirty, DirtyEntries

log = logging.getLogger(__name__)

LINES = 200
"""Problems told of in detail."""
SECOND_LOOK_S = 0.3
"""A count that changes all the while is wrong only if it is so twice, this far apart."""
K = TypeVar("K", bound=Hashable)

OPEN = "not mended: it is in use; check again once it is closed"
LEFT_ALONE = "left alone"


class CheckRefused(LuxError):
    """The check cannot begin. The text is one line."""


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """How far a check is. Cached files and their bytes: looked at, and all that there were at the beginning.

    ``lines`` tells of the first problems; ``mended`` of ``problems`` are none any more. ``error``: why it ended early.
    """

    repair: bool
    files: int
    bytes: int
    total_files: int
    total_bytes: int
    problems: int
    mended: int
    lines: tuple[str, ...]
    error: str | None
    done: bool


class Check:
    """One check, as a job. `run` it once."""

    def __init__(
        self, *, repair: bool, place: str, cache: PageCache, objects: Objects, auditor: Auditor, tree: TreeAuditor,
        inventory: Inventory,
        staging: Staging, journal: Journal, dirty: DirtyEntries,
    ) -> None:  # fmt: skip
        """``place``: where in the mount the paths are that are told of."""
        self._repair = repair
        self._place = place
        self._cache = cache
        self._objects = objects
        self._auditor = auditor
        self._tree = tree
        self._inventory = inventory
        self._staging = staging
        self._journal = journal
        self._dirty = dirty
        self._file_check = FileCheck(cache.contents, cache.budget)
        self._scope = trio.CancelScope()
        self._files = 0
        self._total_files, self._total_bytes = objects.count, objects.used_bytes
        self._problems = self._mended = 0
        self._lines: list[str] = []
        self._error: str | None = "it was stopped"
        self._sick: dict[str, str] = {}
        self.ended = trio.Event()

    # -- from outside

    def stop(self) -> None:
        """End it soon."""
        self._scope.cancel()

    def progress(self) -> CheckProgress:
        """Return how far it is."""
        checked = self._file_check.checked_bytes
        return CheckProgress(
            self._repair,
            self._files,
            checked,
            max(self._total_files, self._files),
            max(self._total_bytes, checked),
            self._problems,
            self._mended,
            tuple(self._lines),
            self._error if self.ended.is_set() else None,
            self.ended.is_set(),
        )

    async def run(self) -> None:
        """Check everything once, or until `stop`."""
        try:
            with self._scope:
                await IndexCheck(
                    self._auditor, self._tree, self._objects, self._name, self._found, repair=self._repair
                ).run()
                async with aclosing(self._inventory.scan()) as objects:
                    async for oid, record in objects:
                        await self._object(oid, record)
                for space in list(self._cache.hierarchy):
                    await self._directory(space)
                await self._counts()
                await self._written()
                self._error = None
        except Exception as exc:
            log.exception("a check ended in an unexpected way")
            self._error = f"internal error: {type(exc).__name__}"
        finally:
            self.ended.set()

    def _name(self, key: str) -> str:
        return f"{self._place}/{path_of(key)}" if self._place else path_of(key)

    def _found(self, what: str, outcome: str | None = None, *, mended: bool = False) -> None:
        """Note a problem, and with ``repair`` what was done about it."""
        self._problems += 1
        self._mended += mended
        if len(self._lines) < LINES:
            self._lines.append(f"{what}; {outcome}" if outcome is not None and self._repair else what)

    # -- cache files

    async def _object(self, oid: bytes, record: ObjectRecord) -> None:
        self._files += 1
        space = self._cache.hierarchy.by_number(record.directory)
        if space is None:
            return  # the directory is not in use in this mount
        if space.degraded:
            self._sick[space.directory.name] = space.degraded
            return
        verdict = await self._file_check.object(record)
        if verdict is None or verdict.good:
            return
        what = f"{self._name(record.key)}: {_text(verdict)}"
        if not self._repair:
            self._found(what)
        elif verdict.error is not None:
            dropped = await self._inventory.drop(oid)
            self._found(what, "dropped, to be fetched again" if dropped else OPEN, mended=dropped)
        else:
            try:
                mended = self._file_check.mend(record, verdict)
            except OSError as exc:
                self._found(what, f"not mended: {exc.strerror}")
            else:
                done = "dropped, to be fetched again" if verdict.damaged else "corrected"
                self._found(what, done if mended else OPEN, mended=mended)

    async def _directory(self, space: Space) -> None:
        """Look for files of a cache directory that belong to nothing."""
        try:
            async with aclosing(self._file_check.strays(space)) as strays:
                async for oid in strays:
                    removed = self._repair and await space.remove(oid) is not None
                    outcome = "removed" if removed else "not mended: it cannot be removed"
                    self._found(f"{space.directory.file_of(oid)}: belongs to nothing", outcome, mended=removed)
            for path in await trio.to_thread.run_sync(lambda: list(islice(space.directory.foreign(), LINES))):
                self._found(f"{path}: is no file of luxfuse; remove it by hand", LEFT_ALONE)
            left = await self._file_check.left_of_moves(space)
            if left and self._repair:
                await sweep_moves(self._cache.contents, space)
            for oid in left:
                path = space.directory.path / "moving" / oid.hex()
                self._found(f"{path}: was left by a move", "removed", mended=self._repair)
        except OSError as exc:
            self._sick[space.directory.name] = exc.strerror or str(exc)
        if (why := self._sick.get(space.directory.name)) is not None:
            self._found(f"{space.directory.name}: could not be looked at: {why}", "not mended")

    # -- what is counted

    async def _counts(self) -> None:
        for space, wrong in await self._twice(self._staged_wrong):
            if self._repair:
                space.count_staged(wrong)
            self._found(_miscounted(space, "files being written", wrong), "corrected", mended=self._repair)
        for space, wrong in await self._twice(self._used_wrong):
            if self._repair:
                space.ledger.add(wrong) if wrong > 0 else space.ledger.free(-wrong)
            self._found(_miscounted(space, "cache", wrong), "corrected", mended=self._repair)
        for ledger, wrong in await self._twice(self._cache.quotas.recount):
            if self._repair:
                ledger.used_bytes += wrong
            what = f"quota of {format_size(ledger.capacity_bytes or 0)}: {too_much(wrong)} counted"
            self._found(what, "corrected", mended=self._repair)

    async def _staged_wrong(self) -> set[tuple[Space, int]]:
        """Return directories and what their staging files take more than is counted."""
        await trio.lowlevel.checkpoint()
        taken = {space: space.retired_bytes for space in self._cache.hierarchy}
        for dirty in self._dirty:
            taken[self._cache.hierarchy.of(self._staging.directory_of(dirty.number))] += dirty.accounted_bytes
        return {(space, used - space.staged_bytes) for space, used in taken.items() if used != space.staged_bytes}

    async def _used_wrong(self) -> set[tuple[Space, int]]:
        """Return directories and what is recorded in them more than their ledgers count."""
        await trio.lowlevel.checkpoint()
        if self._objects.refusing:
            return set()  # files that are not recorded are counted all the same
        wrong = {
            space: self._objects.used_bytes_in(space.number) + space.staged_bytes - space.ledger.used_bytes
            for space in self._cache.hierarchy if space.degraded is None
        }  # fmt: skip
        return {(space, more) for space, more in wrong.items() if more}

    async def _twice(self, look: Callable[[], Awaitable[set[K]]]) -> set[K]:
        """Return what is found now and found again a little later."""
        first = await look()
        if not first:
            return first
        await trio.sleep(SECOND_LOOK_S)
        return first & await look()

    # -- what is written here

    async def _written(self) -> None:
        """Compare staging files, the journal and the dirty files. Only tells."""
        for _, text in sorted(await self._twice(self._written_wrong)):
            self._found(text, LEFT_ALONE)

    async def _written_wrong(self) -> set[tuple[int, str]]:
        """Return staging numbers, which are never used again as keys are, and the mistakes."""
        directories = [space.directory for space in self._cache.hierarchy]
        staged = {dirty.number for dirty in self._dirty if dirty.source is not None}
        try:
            present = await trio.to_thread.run_sync(self._staging.present, directories)
        except OSError as exc:
            return {(0, f"staging files: cannot be looked at: {exc.strerror}")}
        known = {dirty.number: dirty for dirty in self._dirty}
        wrong = {
            (number, f"{path}: is a staging file of which nothing is known; the next mount sets it aside")
            for number, path in present.items() if number not in known and number not in self._journal.files
        }  # fmt: skip
        for number, dirty in known.items():
            # A file that was made while we looked may not have been seen.
            there = number in present or number not in staged
            wrong |= {(number, text) for text in self._dirty_wrong(dirty, there=there)}
        for number, record in self._journal.files.items():
            if number not in known:
                name = self._name(record.key)
                wrong.add((number, f"{name}: is in the journal, but is not uploaded; the next mount looks at it"))
        return wrong

    def _dirty_wrong(self, dirty: Dirty, *, there: bool) -> set[str]:
        name = self._name(dirty.key)
        wrong = set()
        if dirty.source is not None and not there:
            wrong.add(f"{name}: its staging file is missing; what was written is there only while the daemon runs")
        if dirty.closed and dirty.must_push and dirty.number not in self._journal.files:
            wrong.add(f"{name}: is not in the journal; what was written would not survive a crash")
        return wrong


def _text(verdict: Verdict) -> str:
    """Say what is wrong with a file."""
    if isinstance(verdict.error, FileNotFoundError):
        return "its cache file is missing"
    if verdict.error is not None:
        return f"its cache file cannot be read: {verdict.error.strerror}"
    parts = []
    if verdict.damaged:
        pages = "page" if len(verdict.damaged) == 1 else "pages"
        parts.append(f"{pages} {ranges_text(verdict.damaged)} damaged")
    if verdict.file_size is not None:
        parts.append(f"its cache file has the wrong size, {verdict.file_size} bytes")
    elif verdict.foreign and not verdict.damaged:
        parts.append("somebody else has written to its cache file; what it holds is right")
    if verdict.disk_bytes is not None:
        parts.append(f"its cache file takes {format_size(verdict.disk_bytes)} on disk, more than is counted")
    return ", ".join(parts)


def _miscounted(space: Space, what: str, wrong: int) -> str:
    return f"{space.directory.name}: {what}: {too_much(wrong)} counted"


def together(steps: Sequence[CheckProgress], *, last: bool) -> CheckProgress:
    """Return how far a check of several under-stores is; ``last``: none is to come."""
    lines = tuple(line for step in steps for line in step.lines)[:LINES]
    error = next((step.error for step in steps if step.error is not None), None)
    return CheckProgress(
        steps[0].repair, sum(step.files for step in steps), sum(step.bytes for step in steps),
        sum(step.total_files for step in steps), sum(step.total_bytes for step in steps),
        sum(step.problems for step in steps), sum(step.mended for step in steps), lines, error,
        last and all(step.done for step in steps),
    )  # fmt: skip


class Checks:
    """The checks of one under-store: one at a time."""

    def __init__(self, make: Callable[[bool, str], Check], nursery: trio.Nursery) -> None:
        """``make`` makes a check, given whether it is to repair, and where in the mount that is."""
        self._make = make
        self._nursery = nursery
        self._running: Check | None = None

    def start(self, *, repair: bool, place: str = "") -> Check:
        """Begin a check. Raises `CheckRefused`."""
        if self._running is not None and not self._running.ended.is_set():
            raise CheckRefused("a check is running already; wait until it ends")
        self._running = self._make(repair, place)
        self._nursery.start_soon(self._running.run)
        return self._running
