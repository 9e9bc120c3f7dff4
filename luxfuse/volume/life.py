"""One under-store of a mount, from opening it to leaving it: driver, cache directories, journal, index, and what runs."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import trio

from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.sweep import Sweeper
from luxfuse.config import Settings
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.units import format_count
from luxfuse.errors import LuxError, MountError
from luxfuse.index import leftovers, lifecycle, numbers
from luxfuse.index.journal import Journal
from luxfuse.index.journal_copy import JournalCopy
from luxfuse.index.objects import Objects
from luxfuse.index.soundness import open_index
from luxfuse.index.store import IndexStore
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.unfinished import error_of
from luxfuse.volume import store_opening
from luxfuse.volume.claiming import claimed, place_of
from luxfuse.volume.neighbours import Neighbours
from luxfuse.volume.opened import ClaimedDirectory, Local, Opened, VolumeEstate
from luxfuse.volume.parts import VolumeParts
from luxfuse.volume.progress import tell_of_progress

log = logging.getLogger(__name__)

TOUCH_INTERVAL_S = 5.0
POLICY_INTERVAL_S = 600.0
"""How often what the eviction policies have learnt goes to the index: up to 32 MiB each."""

P = TypeVar("P", bound=VolumeParts)


class Cluster(Protocol):
    """The part of the cluster that a volume needs."""

    def on_changed(self, settings: Settings, /) -> Callable[[str, bool], None]:
        """Return the listener to each key of the under-store that was written, or is gone."""

    def prepared(self, settings: Settings, store: Store, journal: Journal, /) -> AbstractAsyncContextManager[Neighbours]:
        """A volume is about to be built, and exists for the block."""

    def serve(self, settings: Settings, parts: VolumeParts, /) -> None:
        """The volume is built: writes that other nodes have left can be brought to its store, until it ends."""

    def enlisted(self, settings: Settings, parts: VolumeParts, /) -> AbstractContextManager[None]:
        """A volume takes part in the cluster for the block."""


class VolumeLife:
    """One under-store with ``settings``; ``note`` takes lines for the command that mounts it."""

    def __init__(
        self,
        settings: Settings,
        note: Callable[[str], None],
        cluster: Cluster | None = None,
        estate: VolumeEstate | None = None,
    ) -> None:
        self.settings = settings
        self._estate = estate or VolumeEstate()
        self._note = note
        self._cluster = cluster

    @asynccontextmanager
    async def running(self, build: Callable[[Opened], P]) -> AsyncIterator[P]:
        """Open everything, ``build`` the parts, recover what the last run left, keep it running, and leave it in order.

        Raises `LuxError` with one line.
        """
        async with self._opened() as (store, local, beginning):
            async with trio.open_nursery() as background:
                cluster = self._cluster
                preparing = cluster.prepared(self.settings, store, local.journal) if cluster else nullcontext(Neighbours())
                async with preparing as neighbours:
                    parts = build(Opened(self.settings, store, local, background, neighbours, self._estate))
                    if cluster is not None:
                        cluster.serve(self.settings, parts)
                    await self._begin(parts, beginning, background)
                    with cluster.enlisted(self.settings, parts) if cluster else nullcontext():
                        yield parts
                parts.files.backings.note_touched()
                parts.hierarchy.keep_policy_states()
                parts.cache.close()
                try:
                    await local.journal.commit()
                except OSError as exc:
                    log.critical("the last changes are not in the journal, and lost if they are not in the store: %s", exc)
                background.cancel_scope.cancel()
            for dirty in parts.dirty:
                if dirty.source is not None:
                    dirty.source.bytes.abandon()
            await trio.to_thread.run_sync(local.staging.close)
            parts.directories.close()

    async def _begin(self, parts: VolumeParts, beginning: lifecycle.Beginning, background: trio.Nursery) -> None:
        background.start_soon(parts.index.flusher)
        background.start_soon(parts.journal.committer)
        background.start_soon(parts.store.watch_deadlines)
        for space in parts.hierarchy:
            background.start_soon(space.watch)
        background.start_soon(self._note_touched, parts.files.backings)
        background.start_soon(self._keep_policy_states, parts.hierarchy)
        sweeper = Sweeper(parts.cache.contents)
        parts.hierarchy.shared.on_left_files.append(sweeper.request)
        await parts.retention.apply_quotas()
        beginning_scope = trio.CancelScope()
        background.start_soon(tell_of_progress, parts.store.counters, beginning_scope)
        try:
            await self._recover(parts)
        finally:
            beginning_scope.cancel()
        background.start_soon(parts.recovery.abort_uploads, parts.recovery.old_uploads())
        background.start_soon(sweeper.run)
        background.start_soon(trio.to_thread.run_sync, parts.recovered.remove_unfinished)
        background.start_soon(parts.cache.quotas.run)
        background.start_soon(parts.mover.run)
        background.start_soon(parts.retention.run)
        if not beginning.clean:
            sweeper.request()
        background.start_soon(parts.writer.watch)
        background.start_soon(parts.writeback.run)
        background.start_soon(parts.writing.spares.run)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Store, Local, lifecycle.Beginning]]:
        settings = self.settings
        successor = self._estate.inherited is not None  # goes on with what is here, as its predecessor would have
        store = Store(
            await store_opening.open_store(settings, successor=successor),
            request_timeout_s=settings.request_timeout_s,
            max_requests=settings.max_requests,
            rng=random.Random(),  # noqa: S311 (jitter)
            get_bytes_s=settings.bandwidth_limit_bytes_s,
            put_bytes_s=settings.upload_bandwidth_limit_bytes_s,
            on_changed=self._cluster.on_changed(settings) if self._cluster else lambda _key, _gone: None,
            name=safe_url(settings.source),
        )
        try:
            outage = None if successor else await store_opening.prove(store, settings)
            if outage is not None and not store_opening.may_be_known(settings):
                raise outage
            self._insist_on_read_only(store)
            async with claimed(settings, self._estate.slots) as caches:
                home = caches[0][1]
                if outage is not None:
                    self._begin_away(store, home, outage)
                with self._journal(home) as journal:
                    async with self._index(home, caches) as (index, directories, beginning):
                        self._estate.slots.keep(home.name, {each.name: each.slot for _, each in caches})
                        yield store, Local(directories, index, journal, beginning.epoch, clean=beginning.clean), beginning
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(store.close)

    def _begin_away(self, store: Store, home: CacheDirectory, outage: MountError) -> None:
        """Mount without the store, as far as an earlier mount knows it. Raises ``outage`` where there was none."""
        if not place_of(self.settings, "index", home).is_dir():
            raise outage
        store.presence.found_away(store.counters.last_failure)
        self._note(f"{outage}; mounted all the same, with what is known and cached here, until it answers")

    def _insist_on_read_only(self, store: Store) -> None:
        if not store.abilities.writable and not self.settings.read_only:
            self.settings = msgspec.structs.replace(self.settings, read_only=True)
            self._note(
                f"{safe_url(self.settings.source)}: nothing can be written to this kind of store; "
                "it is mounted as with --read-only"
            )

    @contextlib.contextmanager
    def _journal(self, directory: CacheDirectory) -> Iterator[Journal]:
        path = place_of(self.settings, "journal", directory)
        s = self.settings
        origin = leftovers.Origin(
            mountpoint=s.mountpoint, source=safe_url(s.source), source_id=s.source_id, cache=str(directory.path)
        )
        try:
            journal = Journal(path, self._estate.journal, JournalCopy(directory.path))
            leftovers.write_origin(path, origin)
        except OSError as exc:
            raise MountError(f"state directory {path}: {exc.strerror}; make it writable") from None
        try:
            self._note_other_journals(path.parent, origin)
            yield journal
        except BaseException:
            journal.close(fails=True)
            raise
        journal.close()

    @asynccontextmanager
    async def _index(
        self, home: CacheDirectory, caches: Sequence[tuple[CacheSetting, CacheDirectory]]
    ) -> AsyncIterator[tuple[IndexStore, list[ClaimedDirectory], lifecycle.Beginning]]:
        path = place_of(self.settings, "index", home)
        try:
            index = await open_index(path, self._note, self._estate.index)
        except OSError as exc:
            raise MountError(f"state directory {path}: {exc.strerror}; make it writable") from None
        try:
            with _blamed_on(path):
                if index.is_new and (times := self._estate.slots.begin_anew()):
                    numbers.begin_anew(index, times)
                beginning = await lifecycle.begin(index)
                directories = await self._numbered(index, caches)
            yield index, directories, beginning
            with trio.CancelScope(shield=True), _blamed_on(path):
                await lifecycle.end(index)
        finally:
            index.close()

    async def _numbered(
        self, index: IndexStore, caches: Sequence[tuple[CacheSetting, CacheDirectory]]
    ) -> list[ClaimedDirectory]:
        """Tell which directory of the index each is. Raises OSError, `ConfigError`."""
        directories: list[ClaimedDirectory] = []
        for setting, directory in caches:
            taken = {each.number for each in directories}
            known = lifecycle.number_of(index, str(directory.path), directory.identity, taken)
            if not known.same:
                await Objects(index).clear(known.number)
                await trio.to_thread.run_sync(directory.doom_all)
            directories.append(ClaimedDirectory(setting, directory, known.number))
        return directories

    async def _recover(self, parts: VolumeParts) -> None:
        """Take up what the last run left in the journal."""
        source = safe_url(self.settings.source)
        try:
            outcome = await parts.recovery.run()
        except LuxError as exc:
            raise MountError(f"{source}: changes of the last run cannot be taken up: {exc}; mend that first") from None
        except OSError as exc:
            raise MountError(f"{source}: changes of the last run cannot be taken up: {exc}; mend that first") from None
        renames, promises = parts.namespace.unfinished.renames, parts.namespace.unfinished.promises
        counts = {
            "changed file": outcome.files,
            "delete": outcome.deletes,
            "unfinished rename": outcome.moves - len(renames),
        }
        found = [format_count(count, what) for what, count in counts.items() if count]
        said = [f"{', '.join(found)}, going to the under-store now"] if found else []
        if renames:
            waiting = format_count(len(renames), "rename")
            why = error_of(renames) or "the under-store has not made them yet"
            said.append(f"{waiting} that cannot be finished yet, so that their names wait: {why}")
        if promises:
            waiting = format_count(len(promises), "changed file")
            said.append(f"{waiting} that cannot be taken up yet, so that their names wait: {error_of(promises)}")
        if outcome.recovered:
            said.append(f"{format_count(outcome.recovered, 'unclosed file')}, kept in {parts.recovered.directory}")
        if outcome.refused:
            refused = format_count(outcome.refused, "changed name")
            said.append(f"{refused} too long for the under-store, kept in {parts.recovered.directory}; see the log")
        if outcome.lost:
            lost = format_count(outcome.lost, "changed file")
            said.append(f"{lost} that cannot be found in the cache directory any more, and lost; see the log")
        if said:
            self._note(f"{source}: the last run left {'; and '.join(said)}")

    def _note_other_journals(self, journals: Path, own: leftovers.Origin) -> None:
        """Say so if changes of the same source wait in a journal that belongs to another cache directory."""
        for left in leftovers.find(journals):
            if left.any and left.origin.source_id == own.source_id and left.origin.cache != own.cache:
                self._note(
                    f"{own.source}: another cache directory, {left.origin.cache}, holds {left.text} that are not in the "
                    f"under-store: mount the source with that one as --cache-dir to bring them there"
                )

    async def _note_touched(self, backings: Backings) -> None:
        while True:
            await trio.sleep(TOUCH_INTERVAL_S)
            backings.note_touched()

    async def _keep_policy_states(self, hierarchy: Hierarchy) -> None:
        while True:
            await trio.sleep(POLICY_INTERVAL_S)
            hierarchy.keep_policy_states()


@contextlib.contextmanager
def _blamed_on(index: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MountError(f"index {index}: {exc.strerror or exc}; free space or make it writable") from None


def one_line(exc: BaseException, doing: str) -> str:
    """Return what went wrong in one line; an unexpected error is logged."""
    first = exc
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, LuxError):
        return str(first)
    log.error("%s failed in an unexpected way", doing, exc_info=exc)
    text = str(first).splitlines()[0] if str(first) else "no text"
    return f"internal error ({type(first).__name__}: {text}); see the log"
