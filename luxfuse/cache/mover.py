"""Moves cache files between directories, in the background: cold ones down, warm ones up.

Theory of operation
-------------------
A move copies the file, page by page and checked, to a file that no name stands for (``moving/``), while readers go on.
It ends in one step of the event loop, in which nobody has the old file open (`Readers.may_drop`) and nothing has changed
since (`_Move.holds`): the new file gets its name, the record its directory, the old file is put out of the way. Until
then readers that have the object open, or open it besides, keep the old file; a finished copy waits for the last close. A
crash at any point leaves one of the two files as the object's: the other is in ``moving/``, which is emptied at the start,
or is removed by the sweep after an unclean end.

An object is in one move at a time (`Shared.moving`), as the copy goes by its id.

Copies yield to fetches for readers, and keep to `BYTES_PER_S`.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from luxfuse.cache import disk
from luxfuse.cache.budget import ByteBudget
from luxfuse.cache.cached import CachedObject
from luxfuse.cache.contents import Contents
from luxfuse.cache.space import Space
from luxfuse.core.promotion import Uses
from luxfuse.index.object_records import ObjectRecord
from luxfuse.index.objects import Objects
from luxfuse.index.pages import Pages
from luxfuse.steps import reached
from luxfuse.types import PAGE_BYTES

log = logging.getLogger(__name__)

BYTES_PER_S = 256 << 20
SLICE_PAGES = 8
INTERVAL_S = 0.25
WAITING_BOUND = 32
"""Finished copies that wait for the last close of their objects."""
PATIENCE_S = 60.0
"""For how long they do."""
WANTED_BOUND = 1024
"""Objects that are to move up."""
ROUND_OBJECTS = 256
"""Objects that one round moves down, before others get their turn."""


@dataclass(slots=True, eq=False)
class _Move:
    """One object on its way. It is counted as used, and its room in ``target`` reserved, until `_finish` or `_drop`."""

    obj: CachedObject
    source: Space
    target: Space
    oid: bytes
    record: ObjectRecord
    pages: Pages
    present: bytes
    bytes: int
    patience_until_s: float = 0.0
    arrived: bool = False

    @property
    def holds(self) -> bool:
        """Whether the object is still the copied one: under the same name, with the same pages of the same file."""
        obj = self.obj
        same = obj.oid == self.oid and obj.record is self.record and obj.space is self.source
        unchanged = obj.pages is self.pages and obj.pages.present == self.present and not obj.flights
        return same and unchanged and obj.record.allocated_bytes == self.bytes


class Mover:
    """Keeps the directories of a mount below their high watermarks, and brings up objects that are wanted there."""

    def __init__(
        self,
        contents: Contents,
        objects: Objects,
        budget: ByteBudget,
        promotes: Callable[[str], bool] = lambda _key: False,
    ) -> None:
        """``promotes``: whether an object (its key) moves up to the highest tier when it is read (`cache-promote`)."""
        self._contents = contents
        self._objects = objects
        self._budget = budget
        self._promotes = promotes
        self._waiting: deque[_Move] = deque()
        self._wanted: OrderedDict[bytes, None] = OrderedDict()
        self._uses = Uses()
        contents.on_use.append(self._used)
        self._stir = trio.Event()
        self.moved_down = 0
        self.moved_up = 0
        self.moved_bytes = 0

    def _used(self, oid: bytes, record: ObjectRecord, space: Space) -> None:
        """Somebody uses an object: if it is in a lower tier, consider to bring it up soon."""
        if space is self._contents.hierarchy.spaces[0] or not self._above(space, record):
            return
        self._uses.add(oid, record.used_us)
        if self._promotes(record.key) or self._uses.deserves_free_room(oid):
            self._wanted[oid] = None
            self._wanted.move_to_end(oid)
            if len(self._wanted) > WANTED_BOUND:
                self._wanted.popitem(last=False)
            self._stir.set()

    def _above(self, space: Space, record: ObjectRecord) -> list[Space]:
        """Return the directories of higher tiers that an object may be in."""
        above = self._contents.hierarchy.above(space)
        placing = self._contents.hierarchy.placing(record.key) if above else None
        return [other for other in above if placing is not None and placing.admits(other.tier)]

    async def run(self) -> None:
        """Move until cancelled."""
        try:
            while True:
                with trio.move_on_after(INTERVAL_S):
                    await self._stir.wait()
                self._stir = trio.Event()
                await self.round()
        finally:
            while self._waiting:
                await self._drop(self._waiting.popleft())

    async def round(self) -> None:
        """Do what is to be done now."""
        await self.end_waiting()
        for space in reversed(list(self._contents.hierarchy)):  # the lowest first, so that the higher ones find room there
            try:
                await self._relieve(space)
            except OSError as exc:
                space.fail(exc)
        for _ in range(len(self._wanted)):
            await self._raise(self._wanted.popitem(last=False)[0])

    async def _raise(self, oid: bytes) -> None:
        """Move an object up if it deserves that, as high as it can come."""
        record = self._objects.record(oid)
        space = self._contents.hierarchy.by_number(record.directory) if record is not None else None
        if record is None or space is None:
            return
        for target in self._above(space, record):
            try:
                fits = await self._has_place(oid, record, target)
            except OSError as exc:
                target.fail(exc)
                continue
            if fits and await self.move(oid, target):
                self.moved_up += 1
                self._uses.forget(oid)
                return

    async def _has_place(self, oid: bytes, record: ObjectRecord, target: Space) -> bool:
        """Whether there is room in a higher tier, made if need be by moving down what deserves it less."""
        wanted = record.allocated_bytes
        if not target.ledger.shortage(wanted) and target.stays_below_watermark(wanted):
            return True
        for other in await target.standings.coldest(wanted, self._occupied()):
            there = self._contents.record_of(other)
            if there is None or not (self._promotes(record.key) or self._uses.deserves_place_of(oid, there.used_us)):
                return False
            below = self._contents.hierarchy.below(target)
            lower = next((space for space in below if not space.ledger.shortage(there.allocated_bytes)), None)
            if lower is None or not await self.move(other, lower):
                return False
            self.moved_down += 1
        return not target.ledger.shortage(wanted)

    async def _relieve(self, space: Space) -> None:
        """Bring a directory from above its high watermark to its low one: down where there is room, else out."""
        excess = space.above_watermark_bytes
        if not excess or space.shut:
            return
        below = self._contents.hierarchy.below(space)
        freed = 0
        if below:
            self._contents.note_touched()
            for oid in (await space.standings.coldest(excess, self._occupied()))[:ROUND_OBJECTS]:
                size = record.allocated_bytes if (record := self._objects.record(oid)) is not None else 0
                target = next((s for s in below if not s.ledger.shortage(size) and not s.above_watermark_bytes), None)
                if target is not None and await self.move(oid, target):
                    self.moved_down += 1
                    freed += size
        if not freed:
            await space.free_ahead(excess)

    def _occupied(self) -> set[bytes]:
        """Objects that need not be considered: on their way already."""
        return self._contents.hierarchy.moving.union(self._contents.hierarchy.removing)

    # -- one move

    async def move(self, oid: bytes, target: Space) -> bool:
        """Move one object; returns whether it is in ``target`` now, or will be at its last close."""
        move = self._begin(oid, target)
        if move is None:
            return False
        try:
            copied = await self._copy(move)
        except disk.ArrivalError as exc:
            target.fail(exc)
            copied = False
        except OSError as exc:
            log.info("%r stays in %s: %s", move.record.key, move.source.directory.name, exc)
            copied = False
        except BaseException:
            await self._drop(move)
            raise
        if not copied:
            await self._drop(move)
            return False
        move.patience_until_s = trio.current_time() + PATIENCE_S
        if await self._end(move):
            return move.arrived
        self._waiting.append(move)
        return True

    def _begin(self, oid: bytes, target: Space) -> _Move | None:
        """Take hold of an object and reserve its room; None if it cannot move now."""
        hierarchy = self._contents.hierarchy
        found = self._objects.load(oid)
        if found is None or oid in hierarchy.removing or oid in hierarchy.moving or self.full:
            return None
        obj = self._contents.acquire(found[0].key, found[0].version, found[0].size)
        source, size = obj.space, obj.record.allocated_bytes
        movable = obj.oid == oid and not obj.flights and obj.pages.count > 0
        if not movable or source is None or source is target or target.shut or not target.ledger.reserve(size):
            self._contents.release(obj)
            return None
        hierarchy.moving.add(oid)
        return _Move(obj, source, target, oid, obj.record, obj.pages, bytes(obj.pages.present), size)

    async def _copy(self, move: _Move) -> bool:
        """Copy the pages of the object; False if it has changed meanwhile, or a page is damaged."""
        pages = move.pages
        present = [page for page in range(pages.total) if pages.has(page)]
        reached("relocate.begun")
        for first in range(0, len(present), SLICE_PAGES):
            began_s = trio.current_time()
            await self._budget.let_others_go_first()
            if not move.holds:
                return False
            part = present[first : first + SLICE_PAGES]
            good = await trio.to_thread.run_sync(
                disk.copy_pages,
                move.source.directory,
                move.target.directory,
                move.oid,
                move.obj.size,
                part,
                [pages.checksums[page] for page in part],
                first == 0,
            )
            if not good or not move.holds:
                return False
            reached("relocate.copied")
            await trio.sleep_until(began_s + len(part) * PAGE_BYTES / BYTES_PER_S)
        return True

    @property
    def full(self) -> bool:
        """Whether so many finished copies wait that no move can begin."""
        return len(self._waiting) >= WAITING_BOUND

    async def end_waiting(self) -> None:
        """End the moves whose objects are not in use any more."""
        for _ in range(len(self._waiting)):
            if self._waiting:  # another task may end them, too
                move = self._waiting.popleft()
                if not await self._end(move):
                    self._waiting.append(move)

    async def _end(self, move: _Move) -> bool:
        """Let a finished copy take the place of the old file, or give it up; False, at once, if it has to wait."""
        oid, target = move.oid, move.target
        if not move.holds or trio.current_time() > move.patience_until_s:
            await self._drop(move)
            return True
        if (
            target.shut
            or move.source.degraded
            or oid in self._contents.hierarchy.removing
            or not self._contents.may_drop(oid)
        ):
            return False
        try:
            st = target.directory.arrive(oid)
        except OSError as exc:
            target.fail(exc)
            await self._drop(move)
            return True
        reached("relocate.arrived")
        await self._finish(move, st)
        return True

    async def _finish(self, move: _Move, st: os.stat_result) -> None:
        """The new file has its name: record that, and remove the old one."""
        source, target = move.source, move.target
        self._contents.relocate(move.obj, target, st, used=source in self._contents.hierarchy.below(target))
        reached("relocate.recorded")
        target.ledger.settle(move.bytes, move.bytes)
        source.ledger.hold(move.bytes)
        move.arrived = True
        self.moved_bytes += move.bytes
        self._contents.release(move.obj)
        try:
            source.directory.put_aside(move.oid)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(source.directory.remove_aside, move.oid)
        except OSError as exc:
            source.fail(exc)  # once it is well again, the sweep removes the rest
        source.ledger.settle(move.bytes, 0)
        self._contents.hierarchy.moving.discard(move.oid)
        reached("relocate.removed")

    async def _drop(self, move: _Move) -> None:
        """Give a move up."""
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(move.target.directory.forget_arrival, move.oid)
        except OSError as exc:
            move.target.fail(exc)
        move.target.ledger.settle(move.bytes, 0)
        self._contents.hierarchy.moving.discard(move.oid)
        self._contents.release(move.obj)
