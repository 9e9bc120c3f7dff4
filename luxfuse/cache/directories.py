"""Cache directories that come and go while the mount is in use.

*Adding* one claims it; files in it that the index knows are cached from that moment on. *Draining* one stops storing
there, moves its files to other directories where there is room, drops the rest, waits until nothing of it is open or
staged, and gives it up. A sick one is given up with all that it holds. The home directory stays: the journal belongs to
it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import trio

from luxfuse.cache.contents import Contents
from luxfuse.cache.mover import Mover
from luxfuse.cache.space import Space
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.errors import ConfigError
from luxfuse.index import lifecycle
from luxfuse.index.object_records import ALL_SEGMENTS
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.slots import Slots
from luxfuse.tiers.staging import Staging, staged_in

log = logging.getLogger(__name__)

POLL_S = 0.1
LOOKED_AT = 4096
"""Objects that one round of draining looks at: more than can be in use at once but for rare cases."""


class Prober(Protocol):
    """The kernel's side, which is to take files of the directories."""

    def probe(self, directory: Path) -> None:
        """Find out whether the kernel takes files of a directory. May raise OSError."""


class Directories:
    """The cache directories of a running mount."""

    def __init__(
        self,
        *,
        contents: Contents,
        mover: Mover,
        staging: Staging,
        index: IndexStore,
        objects: Objects,
        nursery: trio.Nursery,
        source_id: str,
        slots: Slots,
        make_space: Callable[[CacheSetting, CacheDirectory, int], Space],
        prober: Prober | None,
    ) -> None:
        """``make_space``: of a directory and its number, as at the start.

        ``prober``: asked of each directory that is to be used besides; None: nothing is mounted.
        """
        self._contents = contents
        self._hierarchy = contents.hierarchy
        self._mover = mover
        self._staging = staging
        self._index = index
        self._objects = objects
        self._nursery = nursery
        self._source_id = source_id
        self._slots = slots
        self._make_space = make_space
        self._added: list[CacheDirectory] = []
        self._draining: dict[Space, trio.CancelScope] = {}
        self._changing = trio.Lock()
        self._prober = prober

    async def apply(self, wanted: Sequence[CacheSetting]) -> None:
        """Use these directories, by their paths, and no others: add the new ones, begin to drain those left out.

        Raises `ConfigError`, with nothing changed, if that cannot be done. What is in use keeps its size and tier.
        """
        async with self.changed_to(wanted):
            pass

    @asynccontextmanager
    async def changed_to(self, wanted: Sequence[CacheSetting]) -> AsyncGenerator[None, None]:
        """The same around a block: directories left out are drained after it, and nothing is changed if the block fails."""
        async with self._changing:
            paths = {str(Path(setting.path)) for setting in wanted}
            in_use = {space.directory.name: space for space in self._hierarchy}
            if (home := self._hierarchy.home.directory.name) not in paths:
                raise _not_home(home)
            claimed: list[tuple[CacheSetting, CacheDirectory]] = []
            added: list[Space] = []
            try:
                for setting in wanted:
                    if str(Path(setting.path)) not in in_use:
                        claimed.append((setting, await self._claim(setting)))
                while claimed:
                    added.append(await self._take_up(*claimed[0]))
                    del claimed[0]
                yield
            except BaseException:
                for space in added:  # something may have been stored there already
                    self._nursery.start_soon(self.drain, space)
                raise
            finally:
                for _, directory in claimed:
                    directory.close()
            for path, space in in_use.items():
                if path not in paths:
                    if space not in self._draining:
                        self._nursery.start_soon(self.drain, space)
                elif space in self._draining:
                    self._draining[space].cancel()

    async def add(self, setting: CacheSetting) -> Space:
        """Use one more directory. Raises `ConfigError`."""
        async with self._changing:
            if any(space.directory.name == str(Path(setting.path)) for space in self._hierarchy):
                raise ConfigError(f"--cache-dir {setting.path}: it is in use already; name each directory once")
            directory = await self._claim(setting)
            try:
                return await self._take_up(setting, directory)
            except BaseException:
                directory.close()
                raise

    async def _claim(self, setting: CacheSetting) -> CacheDirectory:
        directory = await trio.to_thread.run_sync(CacheDirectory, Path(setting.path), self._source_id)
        staged = await trio.to_thread.run_sync(staged_in, directory)
        if staged:  # they go by a journal that only recovery reads
            directory.close()
            raise ConfigError(
                f"--cache-dir {setting.path}: it holds {len(staged)} changed files of an earlier run; unmount, and mount "
                "with it, to bring them to the under-store"
            )
        return directory

    async def _take_up(self, setting: CacheSetting, directory: CacheDirectory) -> Space:
        taken = {space.number for space in self._hierarchy}
        known = lifecycle.number_of(self._index, str(directory.path), directory.identity, taken)
        try:
            if not known.same:
                await self._objects.clear(known.number)
                await trio.to_thread.run_sync(directory.doom_all)
            await self._objects.commit()
            if self._prober is not None:
                self._prober.probe(directory.path)
        except OSError as exc:
            raise ConfigError(f"--cache-dir {setting.path}: {exc.strerror or exc}; mend that, and try again") from None
        space = self._make_space(setting, directory, known.number)
        self._hierarchy.add(space)
        self._contents.take_up(space)
        self._added.append(directory)
        self._slots.add(directory.name, directory.slot)
        self._nursery.start_soon(self._watch, space)
        self._hierarchy.shared.left_files()  # it may hold files that nobody counts
        log.info("cache directory %s is in use", directory.name)
        return space

    async def _watch(self, space: Space) -> None:
        await trio.to_thread.run_sync(space.directory.remove_doomed, abandon_on_cancel=True)
        await space.watch()

    # -- draining

    async def drain(self, space: Space) -> None:
        """Empty a directory and give it up; cancelled, it stays in use. Raises `ConfigError` for the home directory."""
        if space is self._hierarchy.home:
            raise _not_home(space.directory.name)
        if space in self._draining or space.gone:
            return
        with trio.CancelScope() as self._draining[space]:
            try:
                space.begin_drain()
                log.info("cache directory %s is being drained", space.directory.name)
                while not self._is_empty(space):
                    if not await self._empty_some(space):
                        await trio.sleep(POLL_S)
                self._hierarchy.remove(space)
                space.give_up()
            finally:
                space.end_drain()
                del self._draining[space]
        if space.gone:
            self._slots.remove(space.directory.name)
            space.directory.close()
            log.info("cache directory %s is not in use any more", space.directory.name)

    def _is_empty(self, space: Space) -> bool:
        recorded = any(self._objects.totals(space.number, segment)[1] for segment in ALL_SEGMENTS)
        staged = space.staged_bytes or self._staging.holds(space.directory)
        return not (recorded or staged or space.ledger.reserved_bytes or self._contents.uses(space))

    async def _empty_some(self, space: Space) -> bool:
        """Move or drop some objects of a directory; returns whether that came to something."""
        await self._mover.end_waiting()
        try:
            if space.degraded:
                return await self._forget(space)
            self._contents.note_touched()
            await self._objects.commit()
        except OSError as exc:
            log.info("draining %s waits: %s", space.directory.name, exc)
            return False
        targets = self._targets(space)
        excess = space.ledger.used_bytes - space.staged_bytes - sum(target.free_bytes for target in targets)
        if excess > 0:
            await space.free_ahead(excess)  # the coldest
        orders = [self._objects.ordered(space.number, segment) for segment in ALL_SEGMENTS]
        progress = False
        for oid in [cached.oid for cached in islice(chain(*orders), LOOKED_AT)]:
            if oid not in self._hierarchy.moving and oid not in self._hierarchy.removing:
                progress = await self._move_or_drop(oid, space, targets) or progress
        return progress

    async def _move_or_drop(self, oid: bytes, space: Space, targets: Sequence[Space]) -> bool:
        record = self._objects.record(oid)
        if record is None or record.directory != space.number or self._mover.full:
            return False
        placing = self._hierarchy.placing(record.key)
        for target in targets:
            allowed = placing.keep and placing.admits(target.tier)
            room = not target.ledger.shortage(record.allocated_bytes)
            if allowed and room and await self._mover.move(oid, target):
                return True
        if oid in self._hierarchy.removing or not self._contents.let_go(oid):
            return False  # in use: what waits for its last close is moved or dropped then
        return await space.remove(oid) is not None

    async def _forget(self, space: Space) -> bool:
        """Do without all that a sick directory holds. Raises OSError."""
        if not any(self._objects.totals(space.number, segment)[1] for segment in ALL_SEGMENTS):
            return False
        await self._objects.clear(space.number)
        self._hierarchy.shared.lost_files(space)
        space.forget_all()
        return True

    def _targets(self, space: Space) -> list[Space]:
        """Return the directories that can take what another one holds: of the nearest tier, the lower one first."""

        def distance(other: Space) -> tuple[int, int]:
            below = other.level - space.level
            return abs(below), -below

        return sorted((other for other in self._hierarchy if other is not space and not other.shut), key=distance)

    def close(self) -> None:
        """Give up the directories that were added; the mount is at its end."""
        for directory in self._added:
            directory.close()


def _not_home(path: str) -> ConfigError:
    return ConfigError(
        f"--cache-dir {path}: files that are written lie there, so it cannot be taken away from a mount in use; "
        "unmount, and mount without it"
    )
