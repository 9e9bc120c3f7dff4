"""Room in one cache directory: reservations, eviction, and what happens when the directory is sick.

A sick directory is bypassed: nothing is reserved while it is degraded, so fetches serve their readers from memory.
A probe every `PROBE_INTERVAL_S` finds out when it can be written again. Where the disk cannot be read, either, nobody uses
the files that it holds (`Shared.on_unreadable`): what they were is fetched again, until the disk is back.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Sequence

import trio

from luxfuse.cache.descriptors import is_shortage, shortages
from luxfuse.cache.placing import Holder
from luxfuse.cache.removal import Removal, Removed
from luxfuse.cache.shared import PartRemover, Shared
from luxfuse.cache.standings import Standings
from luxfuse.core.eviction import Policy
from luxfuse.core.ledger import BLOCK_BYTES, Ledger, allocated_bytes
from luxfuse.index.objects import Objects
from luxfuse.tiers.directory import CacheDirectory, FileSystemSpace, Unreadable
from luxfuse.types import TIERS, Tier

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 2.0
OBSERVE_INTERVAL_S = 1.0
EVICTION_ROUNDS = 3
IN_USE_BOUND = 20_000
"""After meeting so many objects that must stay, eviction gives up for the moment: each round looks at them again."""
FULL_BYTES = 64 << 10
"""A file system with less than that is full."""
LOOK_DEADLINE_S = 30.0
"""A disk that reads nothing for so long is dead."""
STUCK_S = 0.2
"""After an eviction that freed nothing (all is in use), how long not to try again."""
AT_ONCE = 256
"""Files that are removed in one turn of a thread; readers of them wait so long."""
EVICT_AHEAD_BYTES = 16 << 20
"""Free this much more than is needed, so that eviction runs once for many fetches."""


class Space:
    """Decides for each fetch whether its bytes may go to one directory."""

    def __init__(
        self,
        directory: CacheDirectory,
        objects: Objects,
        shared: Shared,
        holder: Holder,
        trimmer: PartRemover,
        *,
        policy: Policy,
        number: int,
        tier: Tier,
        capacity_bytes: int | None,
        free_space_ratio: float,
        high_watermark: float = 1.0,
        low_watermark: float = 1.0,
        writable: bool = True,
    ) -> None:
        """``number``: of the directory in the index. Watermarks: parts of what it may hold."""
        self.directory = directory
        self.number = number
        self.tier = tier
        self._objects = objects
        self.standings = Standings(objects, number, policy, shared, holder)
        self._ratio = free_space_ratio
        self._high, self._low = high_watermark, low_watermark
        self.writable = writable
        """Whether anything is ever stored."""
        self._evicting = trio.Lock()
        self._stuck_until = 0.0
        self.shared = shared
        self.trimmer = trimmer
        self._holder = holder
        self.ledger = Ledger(capacity_bytes, objects.used_bytes_in(number))
        self._removal = Removal(
            directory, number, objects=objects, shared=shared, holder=holder, ledger=self.ledger, on_failure=self.fail
        )
        self.read_bytes = 0
        """Bytes that the daemon read from here for its readers."""
        self.staged_bytes = 0
        """Bytes of staging files: counted in the ledger, never evicted."""
        self.retired_bytes = 0
        """Of these, the bytes that are removed as soon as the journal has said so."""
        self.degraded: str | None = None
        self.unreadable = False
        """Its disk gives nothing of what it holds."""
        self._failed = trio.Event()
        """Set when it begins to fail: time to look at the disk."""
        self._looking = trio.CapacityLimiter(1)
        self.draining = False
        """Nothing more is stored here: the files here move away."""
        self.gone = False
        """It is not in use any more."""
        self.evictions = 0
        """Objects that were removed to make room for others."""
        self.evicted_bytes = 0
        """Bytes of them, and of parts that were taken out of large objects to make room."""
        self.write_failures = 0

    @property
    def capacity_bytes(self) -> int | None:
        """The hard limit, None where only the free-space ratio bounds the cache."""
        return self.ledger.capacity_bytes

    @property
    def fullness(self) -> float:
        """Part of what it may hold that is taken."""
        return self._taken_bytes / max(1, self.full_bytes)

    @property
    def _taken_bytes(self) -> int:
        return self.ledger.used_bytes + self.ledger.reserved_bytes

    @property
    def full_bytes(self) -> int:
        """The bytes it may hold: its capacity, or those it holds and those free in the file system above its floor."""
        if self.ledger.capacity_bytes is not None:
            return self.ledger.capacity_bytes
        return self._taken_bytes + max(0, (self.ledger.fs_free_bytes or 0) - self.ledger.free_floor_bytes)

    @property
    def level(self) -> int:
        """How far below the highest tier it is."""
        return TIERS.index(self.tier)

    @property
    def most_bytes(self) -> int | None:
        """The bytes of clean objects that can be held so that no eviction reaches them; None while that is not known."""
        ledger = self.ledger
        if ledger.fs_free_bytes is not None:
            most = max(0, ledger.used_bytes + ledger.fs_free_bytes - ledger.free_floor_bytes)
            most = most if ledger.capacity_bytes is None else min(most, ledger.capacity_bytes)
        elif ledger.capacity_bytes is not None:
            most = ledger.capacity_bytes
        else:
            return None
        return max(0, min(most - self._ahead_bytes, int(most * self._low)) - self.staged_bytes)

    @property
    def _ahead_bytes(self) -> int:
        return min(EVICT_AHEAD_BYTES, (self.capacity_bytes or EVICT_AHEAD_BYTES * 100) // 100)

    @property
    def free_bytes(self) -> int:
        """The bytes that it could take more."""
        return max(0, self.full_bytes - self._taken_bytes)

    @property
    def shut(self) -> bool:
        """Nothing may be stored: the directory is sick, drained or not to be written, or the index could not record it."""
        return self.degraded is not None or self.draining or self.gone or not self.writable or self._objects.refusing

    def try_reserve(self, wanted_bytes: int) -> bool | None:
        """Promise room at once if there is; None if only `reserve`, which may evict, can tell."""
        if self.shut:
            return False
        return True if self.ledger.reserve(allocated_bytes(wanted_bytes)) else None

    async def reserve(self, wanted_bytes: int) -> bool:
        """Promise room for ``wanted_bytes``, evicting if need be. False: do without the disk."""
        if self.shut:
            return False
        wanted = allocated_bytes(wanted_bytes)
        if self.ledger.shortage(wanted) and trio.current_time() < self._stuck_until:
            return False
        for _ in range(EVICTION_ROUNDS):
            if self.ledger.reserve(wanted):
                return True
            async with self._evicting:
                shortage = self.ledger.shortage(wanted)
                if shortage and not await self._evict(shortage):
                    self._stuck_until = trio.current_time() + STUCK_S
                    return False
        return self.ledger.reserve(wanted)

    @property
    def above_watermark_bytes(self) -> int:
        """Bytes to get rid of to be at the low watermark again; 0 unless above the high one."""
        taken = self._taken_bytes
        return int(taken - self._low * self.full_bytes) if taken > self._high * self.full_bytes else 0

    def stays_below_watermark(self, wanted_bytes: int) -> bool:
        """Whether so many bytes more would not bring it above the high watermark."""
        return self._taken_bytes + wanted_bytes <= self._high * self.full_bytes

    # -- eviction

    async def free_ahead(self, wanted_bytes: int) -> None:
        """Evict before there is need, so that nothing waits for room."""
        async with self._evicting:
            await self._evict(wanted_bytes, ahead_bytes=0)

    async def _evict(self, shortage_bytes: int, ahead_bytes: int | None = None) -> bool:
        """Free at least ``shortage_bytes`` if that can be done; returns whether anything was freed."""
        self._holder.note_touched()
        target = shortage_bytes + (self._ahead_bytes if ahead_bytes is None else ahead_bytes)
        in_use = self._holder.expected() | set(self.shared.removing)
        looked_at = len(in_use)
        freed_bytes = 0
        while freed_bytes < target:
            try:
                chosen = await self.standings.coldest(target - freed_bytes, in_use)
            except OSError as exc:
                self.fail(exc)
                break
            in_use.update(chosen)
            await self._objects.expect(chosen)
            whole, whole_bytes = [], 0
            for oid in chosen:
                if trimmed := await self.trimmer.trim(oid, self, max(BLOCK_BYTES, target - freed_bytes - whole_bytes)):
                    freed_bytes += trimmed
                    self.evicted_bytes += trimmed
                elif (record := self._objects.record(oid)) is not None:
                    whole.append(oid)
                    whole_bytes += record.allocated_bytes
            for first in range(0, len(whole), AT_ONCE):  # those after them are not removing yet: they can be read
                some = whole[first : first + AT_ONCE]
                removed = await self.evict([o for o in some if o not in self.shared.removing and self._holder.let_go(o)])
                freed_bytes += removed.freed_bytes
                if not removed.complete:
                    return freed_bytes > 0  # the next files would not go either
            if not chosen or len(in_use) > looked_at + IN_USE_BOUND:
                break
        return freed_bytes > 0

    async def evict(self, oids: Sequence[bytes]) -> Removed:
        """Remove objects' files, which nobody uses, to make room for others: counted as evictions."""
        removed = await self._removal.remove(oids)
        self.evictions += removed.files
        self.evicted_bytes += removed.freed_bytes
        return removed

    async def remove(self, oid: bytes) -> int | None:
        """Remove an object's file, then its record; returns the bytes freed, None if the file stays and with it the record.

        The caller made sure that nobody uses the file. After a crash in between, the record is one of a lost file.
        """
        removed = await self._removal.remove([oid])
        return removed.freed_bytes if removed.complete else None

    # -- bytes

    def settle(self, reserved_bytes: int, stored_bytes: int) -> None:
        """End a reservation (bytes as given to `reserve`) of which ``stored_bytes`` were new on disk."""
        self.ledger.settle(allocated_bytes(reserved_bytes), stored_bytes)

    async def resize(
        self, size_bytes: int | None, size_ratio: float | None, free_ratio: float, high: float, low: float
    ) -> None:
        """Hold so much from now on, in bytes or as a part of the file system; the excess goes in the background."""
        if size_ratio is not None:
            try:
                size_bytes = int((await trio.to_thread.run_sync(self.directory.space)).total_bytes * size_ratio)
            except OSError as exc:
                self.fail(exc)
                size_bytes = self.ledger.capacity_bytes
        self.ledger.capacity_bytes = size_bytes
        self._ratio, self._high, self._low = free_ratio, high, low

    def count_staged(self, delta_bytes: int) -> None:
        """Staging files take so much more, or less, on disk."""
        self.staged_bytes += delta_bytes
        if delta_bytes > 0:
            self.ledger.add(delta_bytes)
        else:
            self.ledger.free(-delta_bytes)

    def has_room(self, wanted_bytes: int) -> bool:
        """Whether ``wanted_bytes`` more would fit, if everything were evicted that can be."""
        return self.capacity_bytes is None or self.staged_bytes + wanted_bytes <= self.capacity_bytes

    async def make_room(self, wanted_bytes: int) -> bool:
        """Evict until ``wanted_bytes`` fit; False if that cannot be done now. Nothing is reserved."""
        if self.ledger.shortage(wanted_bytes):
            async with self._evicting:
                if shortage := self.ledger.shortage(wanted_bytes):
                    await self._evict(shortage)
        return not self.ledger.shortage(wanted_bytes)

    # -- a directory that goes

    def begin_drain(self) -> None:
        """Store nothing more from now on."""
        self.draining = True

    def end_drain(self) -> None:
        """Store again, unless the directory was given up."""
        self.draining = False

    def give_up(self) -> None:
        """It is empty, and not used any more."""
        self.gone = True

    def forget_all(self) -> None:
        """Nothing is recorded here any more but staging files."""
        self.ledger.used_bytes = self.staged_bytes

    # -- a sick directory

    def fail(self, exc: OSError, what: str = "the cache disk is not used") -> None:
        """Note that the directory failed; it is bypassed until a probe succeeds.

        Not where no descriptors are left, for ``what``: that says nothing of the disk.
        """
        if is_shortage(exc):
            shortages.note(what)
            return
        self.write_failures += 1
        reason = f"cache directory {self.directory.name}: {exc.strerror or exc}"
        if self.degraded is None:
            log.warning("%s; reading from the under-store until it recovers", reason)
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):  # which says that the disk can be used as such
                self._failed.set()
        self.degraded = reason

    async def watch(self) -> None:
        """Look at the file system regularly and find out when a sick directory is well again; until cancelled or `gone`."""
        while not self.gone:
            if self.degraded:
                await self._probe()
            else:
                await self._observe()
            with trio.move_on_after(PROBE_INTERVAL_S if self.degraded else OBSERVE_INTERVAL_S):
                await self._failed.wait()
            self._failed = trio.Event()

    async def _look(self) -> FileSystemSpace:
        """Look at the file system, and read from the disk. Raises OSError."""
        with trio.move_on_after(LOOK_DEADLINE_S):
            # One that hangs is left behind: until it ends, the next one waits for its turn, in vain.
            look = self.directory.look
            return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._looking)
        raise Unreadable(errno.ETIMEDOUT, f"read nothing in {LOOK_DEADLINE_S:g} s")

    def _lose_disk(self, exc: Unreadable) -> None:
        self.fail(exc)
        if not (self.unreadable or is_shortage(exc)):
            self.unreadable = True
            log.warning("cache directory %s cannot be read; its files are not used until it can", self.directory.name)
            for told in self.shared.on_unreadable:
                told(self)

    async def _observe(self) -> None:
        try:
            space = await self._look()
        except Unreadable as exc:
            self._lose_disk(exc)
            return
        except OSError as exc:
            self.fail(exc)
            return
        self.ledger.observe(space.free_bytes, space.total_bytes, self._ratio)
        if space.free_bytes < FULL_BYTES and not self._evicting.locked():
            # A caller that wants room would only be told that there is none, and nobody that the disk is full.
            async with self._evicting:
                freed = await self._evict(FULL_BYTES, ahead_bytes=0)
            if not freed and self.degraded is None:
                self.fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            return
        short = self.ledger.shortage(0)
        if short and not self._evicting.locked():
            async with self._evicting:
                await self._evict(short)

    async def _probe(self) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):  # it is made anew
                await self._look()
            kept = await trio.to_thread.run_sync(self.directory.probe)
        except Unreadable as exc:
            self._lose_disk(exc)
            return
        except OSError as exc:
            if exc.errno == errno.ENOSPC:  # somebody else filled the disk: give back what we can
                async with self._evicting:
                    await self._evict(EVICT_AHEAD_BYTES)
            return
        if not kept:
            try:
                await self._objects.clear(self.number)
            except OSError as exc:
                self.fail(exc)
                return
            self.shared.lost_files(self)
        self.ledger.used_bytes = self._objects.used_bytes_in(self.number) + self.staged_bytes
        log.info("cache directory %s is used again", self.directory.name)
        self.degraded = None
        if self.unreadable:
            self.unreadable = False
            for told in self.shared.on_readable:
                told(self)
        self.shared.left_files()
        await self._observe()
