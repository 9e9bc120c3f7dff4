"""The composition root: builds every part of one mount, owns the root nursery, and takes everything down in order."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import random
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from luxfuse import logs
from luxfuse.assembly import Cache, Local, build
from luxfuse.cache.hierarchy import Hierarchy
from luxfuse.cache.sweep import Sweeper
from luxfuse.config import CacheDirectory as CacheSetting
from luxfuse.config import Settings
from luxfuse.control import registry, server
from luxfuse.core.units import format_count
from luxfuse.errors import BucketMissing, ConfigError, LuxError, MountError, NotFound
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.session import Session
from luxfuse.index import leftovers, lifecycle
from luxfuse.index.journal import Journal
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.reload import Reloader
from luxfuse.service import Parts, Service
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.backlog import Backlog, path_of
from luxfuse.vfs.files import Files

log = logging.getLogger(__name__)


class Ready(Protocol):
    """Told once how mounting went: ``error`` is one line, or None; ``notes`` are lines for whoever mounts."""

    def __call__(self, error: str | None, notes: Sequence[str] = (), /) -> None:
        """Take it."""


FILES_OPEN = 1 << 20
PROBE_DEADLINE_S = 10.0
ANSWER_DEADLINE_S = 10.0
PATIENCE_S = 5.0
"""For how long files that are open when a signal comes may still be used; and then, how long what is closed may go up."""
TOUCH_INTERVAL_S = 5.0
POLICY_INTERVAL_S = 600.0
"""How often what the eviction policies have learnt goes to the index: up to 32 MiB each."""
REFILL_INTERVAL_S = 0.02
DRAIN_PATIENCE_S = 60.0
"""After an unmount, for how long without progress the store is waited for; what is left goes up at the next mount."""
STARTING_INTERVAL_S = 5.0
"""How often whoever mounts hears that it takes long."""


def run(settings: Settings, ready: Ready, waiting: Callable[[str], None] = lambda _why: None) -> int:
    """Mount, call ``ready(None, notes)`` once the tree answers, serve until unmounted; returns the exit code.

    Before that every failure is given to ``ready`` as one line, and the result is 1. While that takes long, ``waiting``
    is told why, again and again.
    """
    started = False

    def report(error: str | None, notes: Sequence[str] = ()) -> None:
        nonlocal started
        started = started or error is None
        ready(error, notes)

    _raise_file_limit()
    os.umask(0o077)  # whatever the daemon makes, rotated logs too, is the user's alone
    try:
        with registry.claim(settings) as claim:
            logs.configure(settings, claim.directory)
            mounts.check(settings.mountpoint)
            trio.run(_Daemon(settings, claim.directory, report, waiting).main, strict_exception_groups=True)
        return 0
    except BaseException as exc:
        if started:
            log.critical("the daemon ends", exc_info=exc)
        else:
            report(_one_line(exc))
        if not isinstance(exc, Exception):
            raise
        return 1


def _raise_file_limit() -> None:
    """Files in passthrough and files that are not in the under-store yet stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_OPEN:
        with contextlib.suppress(ValueError, OSError):  # only root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_OPEN, FILES_OPEN))
            return
    wanted = FILES_OPEN if hard == resource.RLIM_INFINITY else min(hard, FILES_OPEN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _one_line(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, LuxError):
        return str(exc)
    log.error("mounting failed in an unexpected way", exc_info=exc)
    return f"internal error ({type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else 'no text'}); see the log"


class _Daemon:
    def __init__(self, settings: Settings, state: Path, ready: Ready, waiting: Callable[[str], None]) -> None:
        self._settings = settings
        self._state = state
        self._ready = ready
        self._waiting = waiting
        self._notes: list[str] = []
        self._started = False
        self._drain_scope = trio.CancelScope()

    async def main(self) -> None:
        settings = self._settings
        store = Store(
            await self._open_store(), request_timeout_s=settings.request_timeout_s, max_requests=settings.max_requests,
            rng=random.Random(),  # noqa: S311 (jitter)
            get_bytes_s=settings.bandwidth_limit_bytes_s, put_bytes_s=settings.upload_bandwidth_limit_bytes_s,
        )
        try:
            await self._probe(store)
            self._insist_on_read_only(store)
            async with self._claimed() as claimed:
                home = claimed[0][1]
                with self._journal(home) as journal:
                    async with self._index(home, claimed) as (index, caches, beginning):
                        local = Local(caches, index, journal, beginning.epoch, clean=beginning.clean)
                        await self._serve(store, local, beginning)
        finally:
            await trio.to_thread.run_sync(store.close)

    async def _open_store(self) -> UnderStore:
        s = self._settings
        return await trio.to_thread.run_sync(
            lambda: open_driver(
                s.source, endpoint_url=s.endpoint_url, storage_options=s.storage_options, driver=s.driver,
                request_timeout_s=s.request_timeout_s,
            )
        )

    async def _probe(self, store: Store) -> None:
        source = safe_url(self._settings.source)
        with trio.move_on_after(PROBE_DEADLINE_S - 1) as scope:
            try:
                await store.probe()
            except BucketMissing as exc:
                raise MountError(f"{source}: {exc}; create the bucket or correct its name") from None
            except NotFound as exc:
                raise MountError(f"{source}: {exc}") from None
            except LuxError as exc:
                raise MountError(f"{source}: {exc}") from None
        if scope.cancelled_caught:
            where = safe_url(self._settings.endpoint_url) if self._settings.endpoint_url else "its endpoint"
            raise MountError(f"{source}: {where} did not answer within 10 s; check the address and the network")

    def _insist_on_read_only(self, store: Store) -> None:
        if not store.abilities.writable and not self._settings.read_only:
            self._settings = msgspec.structs.replace(self._settings, read_only=True)
            self._notes.append(
                f"{safe_url(self._settings.source)}: nothing can be written to this kind of store; "
                "it is mounted as with --read-only"
            )

    @asynccontextmanager
    async def _claimed(self) -> AsyncIterator[list[tuple[CacheSetting, CacheDirectory]]]:
        """Claim the cache directories, the home directory first. Raises `ConfigError`."""
        claimed: list[tuple[CacheSetting, CacheDirectory]] = []
        try:
            for setting in self._settings.cache_dirs:
                path, source_id = Path(setting.path), self._settings.source_id
                claimed.append((setting, await trio.to_thread.run_sync(CacheDirectory, path, source_id)))
            yield sorted(claimed, key=lambda cache: self._homeliness(*cache))
        finally:
            for _, directory in claimed:
                directory.close()

    def _homeliness(self, setting: CacheSetting, directory: CacheDirectory) -> tuple[bool, bool]:
        """What is staged stays where it was; else memory is no place for it."""
        return not self._path("journal", directory).exists(), setting.tier == "mem"

    def _path(self, kind: str, directory: CacheDirectory) -> Path:
        """Return where the index or journal of a cache directory is kept."""
        name = hashlib.sha256(os.fsencode(directory.path)).hexdigest()[:16]
        return Path(self._settings.state_dir, kind, name)

    @contextlib.contextmanager
    def _journal(self, directory: CacheDirectory) -> Iterator[Journal]:
        path = self._path("journal", directory)
        s = self._settings
        origin = leftovers.Origin(
            mountpoint=s.mountpoint, source=safe_url(s.source), source_id=s.source_id, cache=str(directory.path)
        )
        try:
            journal = Journal(path)
            leftovers.write_origin(path, origin)
        except OSError as exc:
            raise MountError(f"state directory {path}: {exc.strerror}; make it writable") from None
        try:
            self._note_other_journals(path.parent, origin)
            yield journal
        finally:
            journal.close()

    @asynccontextmanager
    async def _index(
        self, home: CacheDirectory, claimed: Sequence[tuple[CacheSetting, CacheDirectory]]
    ) -> AsyncIterator[tuple[IndexStore, list[Cache], lifecycle.Beginning]]:
        path = self._path("index", home)
        try:
            index = IndexStore(path)
        except OSError as exc:
            raise MountError(f"state directory {path}: {exc.strerror}; make it writable") from None
        try:
            beginning = await lifecycle.begin(index)
            caches: list[Cache] = []
            for setting, directory in claimed:
                known = lifecycle.number_of(
                    index, str(directory.path), directory.identity, {cache.number for cache in caches}
                )
                if not known.same:
                    await Objects(index).clear(known.number)
                    await trio.to_thread.run_sync(directory.doom_all)
                caches.append(Cache(setting, directory, known.number))
            yield index, caches, beginning
            with trio.CancelScope(shield=True):
                await lifecycle.end(index)
        except OSError as exc:
            raise MountError(f"index {path}: {exc.strerror or exc}; free space or make it writable") from None
        finally:
            index.close()

    async def _serve(self, store: Store, local: Local, beginning: lifecycle.Beginning) -> None:
        async with trio.open_nursery() as background:
            parts = build(self._settings, store, local, background)
            background.start_soon(local.index.flusher)
            background.start_soon(local.journal.committer)
            background.start_soon(store.watch_deadlines)
            for space in parts.hierarchy:
                background.start_soon(space.watch)
            background.start_soon(self._note_touched, parts.files)
            background.start_soon(self._keep_policy_states, parts.hierarchy)
            sweeper = Sweeper(parts.cache)
            parts.hierarchy.hooks.recovered = sweeper.request
            background.start_soon(self._say_what_takes_long)
            limit_of = parts.policies.limit_of
            await parts.cache.quotas.replace(parts.policies.limits(), lambda key: limit_of(path_of(key)))
            await self._recover(parts)
            background.start_soon(sweeper.run)
            background.start_soon(parts.mover.run)
            background.start_soon(parts.retention.run)
            background.start_soon(parts.cache.quotas.run)
            if not beginning.clean:
                sweeper.request()
            background.start_soon(parts.writer.watch)
            background.start_soon(parts.writeback.run)
            background.start_soon(self._refill, parts.staging)
            service = Service(self._settings, parts, started_s=time.monotonic())
            service.reread = Reloader(service, parts).reload
            async with trio.open_nursery() as serving:
                serving.start_soon(self._handle_signals, parts.session)
                serving.start_soon(self._reload_on_hangup, service)
                await serving.start(parts.session.serve)
                await serving.start(server.serve, self._state / registry.SOCKET, service)
                await self._await_answer()
                self._started = True
                self._ready(None, self._notes)
                log.info("serving %s at %s", safe_url(self._settings.source), self._settings.mountpoint)
                await parts.session.ended.wait()
                parts.loads.stop()
                await self._drain(parts.backlog)
                serving.cancel_scope.cancel()
            log.info("unmounted %s", self._settings.mountpoint)
            parts.files.note_touched()
            parts.hierarchy.keep_policy_states()
            parts.cache.close()
            try:
                await local.journal.commit()
            except OSError as exc:
                log.critical("the last changes are not in the journal, and lost if they are not in the store: %s", exc)
            background.cancel_scope.cancel()
        await trio.to_thread.run_sync(local.staging.close)

    async def _recover(self, parts: Parts) -> None:
        """Take up what the last run left in the journal."""
        source = safe_url(self._settings.source)
        try:
            outcome = await parts.recovery.run()
        except LuxError as exc:
            raise MountError(
                f"{source}: the last run left renames that cannot be finished now: {exc}; mount again when that is mended"
            ) from None
        except OSError as exc:
            raise MountError(f"{source}: what the last run left cannot be taken up: {exc}; mend that first") from None
        counts = {"changed file": outcome.files, "delete": outcome.deletes, "unfinished rename": outcome.moves}
        found = [format_count(count, what) for what, count in counts.items() if count]
        said = [f"{', '.join(found)}, going to the under-store now"] if found else []
        if outcome.recovered:
            said.append(f"{format_count(outcome.recovered, 'unclosed file')}, kept in {parts.recovered.directory}")
        if outcome.lost:
            lost = format_count(outcome.lost, "changed file")
            said.append(f"{lost} that cannot be found in the cache directory any more, and lost; see the log")
        if said:
            self._note(f"{source}: the last run left {'; and '.join(said)}")
        await parts.recovery.abort_uploads()

    def _note(self, line: str) -> None:
        log.info("%s", line)
        self._notes.append(line)

    def _note_other_journals(self, journals: Path, own: leftovers.Origin) -> None:
        """Say so if changes of the same source wait in a journal that belongs to another cache directory."""
        for left in leftovers.find(journals):
            if left.any and left.origin.source_id == own.source_id and left.origin.cache != own.cache:
                self._note(
                    f"{own.source}: another cache directory, {left.origin.cache}, holds {left.text} that are not in the "
                    f"under-store: mount the source with that one as --cache-dir to bring them there"
                )

    async def _say_what_takes_long(self) -> None:
        while not self._started:
            await trio.sleep(STARTING_INTERVAL_S)
            if not self._started:
                self._waiting(f"{safe_url(self._settings.source)}: still finishing what the last run left")

    async def _refill(self, staging: Staging) -> None:
        """Keep spare staging files at hand, so that making a file is quick."""
        while True:
            if staging.spares_low:
                with contextlib.suppress(OSError):  # whoever makes a file will meet it
                    await trio.to_thread.run_sync(staging.refill)
            await trio.sleep(REFILL_INTERVAL_S)

    async def _drain(self, backlog: Backlog) -> None:
        """The mount is gone: bring what is dirty to the store, as long as that makes progress."""
        with self._drain_scope:
            async with aclosing(backlog.drain()) as steps:
                async for step in steps:
                    if step.stalled_s > DRAIN_PATIENCE_S:
                        break
        tally = backlog.tally()
        if tally.files or tally.deletes:
            log.info(
                "%d files and %d deletes are not in the under-store; the next mount brings them there", tally.files,
                tally.deletes,
            )

    async def _await_answer(self) -> None:
        """The tree answers when a stat of its root comes back."""
        with trio.move_on_after(ANSWER_DEADLINE_S):
            await trio.to_thread.run_sync(os.stat, self._settings.mountpoint, abandon_on_cancel=True)
            return
        raise MountError(f"{self._settings.mountpoint}: mounted, but does not answer; see the log")

    async def _handle_signals(self, session: Session) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if session.ended.is_set():
                    log.info("ending on %s", signal.Signals(number).name)
                    self._drain_scope.cancel()
                    continue
                log.info("unmounting on %s", signal.Signals(number).name)
                await self._leave(session)
                self._drain_scope.deadline = trio.current_time() + PATIENCE_S

    async def _reload_on_hangup(self, service: Service) -> None:
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                try:
                    await service.reload()
                except ConfigError as exc:
                    log.warning("the configuration stays as it was: %s", exc)

    async def _leave(self, session: Session) -> None:
        """Take the mount away; who has a file open gets a moment to end."""
        try:
            await session.unmount()
        except MountError as exc:
            log.info("%s; detaching it, and ending in %g s", exc, PATIENCE_S)
            with contextlib.suppress(MountError):  # it went away meanwhile
                await session.unmount(lazy=True)
        with trio.move_on_after(PATIENCE_S):
            await session.ended.wait()
            return
        await session.terminate()

    async def _note_touched(self, files: Files) -> None:
        while True:
            await trio.sleep(TOUCH_INTERVAL_S)
            files.note_touched()

    async def _keep_policy_states(self, hierarchy: Hierarchy) -> None:
        while True:
            await trio.sleep(POLICY_INTERVAL_S)
            hierarchy.keep_policy_states()


def main() -> int:
    """Run as a process of its own: settings as JSON on stdin, lines of JSON to the descriptor of --ready-fd."""
    parser = argparse.ArgumentParser(prog="luxfuse.daemon")
    parser.add_argument("--ready-fd", type=int, required=True)
    ready_fd = parser.parse_args().ready_fd
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)

    def ready(error: str | None, notes: Sequence[str] = ()) -> None:
        os.write(ready_fd, msgspec.json.encode({"error": error, "notes": list(notes)}) + b"\n")
        os.close(ready_fd)

    def waiting(why: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more, which ready will find out
            os.write(ready_fd, msgspec.json.encode({"waiting": why}) + b"\n")

    return run(settings, ready, waiting)


if __name__ == "__main__":
    sys.exit(main())
