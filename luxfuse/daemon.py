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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from luxfuse import logs
from luxfuse.assembly import Local, build
from luxfuse.cache.sweep import Sweeper
from luxfuse.config import Settings
from luxfuse.control import registry, server
from luxfuse.errors import BucketMissing, LuxError, MountError, NotFound
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.session import Session
from luxfuse.index import lifecycle
from luxfuse.index.journal import Journal
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.service import Parts, Service
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.tiers.staging import Staging
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.files import Files

log = logging.getLogger(__name__)

Ready = Callable[[str | None], None]

FILES_OPEN = 65_536
PROBE_DEADLINE_S = 10.0
ANSWER_DEADLINE_S = 10.0
PATIENCE_S = 5.0
"""For how long files that are open when a signal comes may still be read."""
TOUCH_INTERVAL_S = 5.0
REFILL_INTERVAL_S = 0.02
DRAIN_PATIENCE_S = 60.0
"""After an unmount, for how long without progress the store is waited for; what is left goes up at the next mount."""


def run(settings: Settings, ready: Ready) -> int:
    """Mount, call ``ready(None)`` once the tree answers, serve until unmounted; returns the exit code.

    Before that every failure is given to ``ready`` as one line, and the result is 1.
    """
    started = False

    def report(error: str | None) -> None:
        nonlocal started
        started = started or error is None
        ready(error)

    _raise_file_limit()
    os.umask(0o077)  # whatever the daemon makes, rotated logs too, is the user's alone
    try:
        with registry.claim(settings) as claim:
            logs.configure(settings, claim.directory)
            mounts.check(settings.mountpoint)
            trio.run(_Daemon(settings, claim.directory, report).main, strict_exception_groups=True)
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
    """Files in passthrough stay open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
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
    def __init__(self, settings: Settings, state: Path, ready: Ready) -> None:
        self._settings = settings
        self._state = state
        self._ready = ready
        self._signalled: int | None = None

    async def main(self) -> None:
        settings = self._settings
        store = Store(
            await self._open_store(), request_timeout_s=settings.request_timeout_s, max_requests=settings.max_requests,
            rng=random.Random(),  # noqa: S311 (jitter)
        )
        try:
            await self._probe(store)
            directory = await trio.to_thread.run_sync(
                CacheDirectory, Path(settings.cache_dir.path), settings.source_id
            )
            try:
                with self._journal(directory) as journal:
                    async with self._index(directory) as (index, beginning):
                        local = Local(directory, index, journal, beginning.epoch)
                        await self._serve(store, local, beginning)
            finally:
                directory.close()
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

    def _path(self, kind: str, directory: CacheDirectory) -> Path:
        """Return where the index or journal of a cache directory is kept."""
        name = hashlib.sha256(os.fsencode(directory.path)).hexdigest()[:16]
        return Path(self._settings.state_dir, kind, name)

    @contextlib.contextmanager
    def _journal(self, directory: CacheDirectory) -> Iterator[Journal]:
        path = self._path("journal", directory)
        try:
            journal = Journal(path)
        except OSError as exc:
            raise MountError(f"state directory {path}: {exc.strerror}; make it writable") from None
        try:
            yield journal
        finally:
            journal.close()

    @asynccontextmanager
    async def _index(self, directory: CacheDirectory) -> AsyncIterator[tuple[IndexStore, lifecycle.Beginning]]:
        path = self._path("index", directory)
        try:
            index = IndexStore(path)
        except OSError as exc:
            raise MountError(f"state directory {path}: {exc.strerror}; make it writable") from None
        try:
            beginning = await lifecycle.begin(index, directory.identity)
            if not beginning.same_cache:
                await Objects(index).clear()
                await trio.to_thread.run_sync(directory.doom_all)
            yield index, beginning
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
            background.start_soon(parts.space.watch)
            background.start_soon(self._note_touched, parts.files)
            sweeper = Sweeper(parts.cache, local.directory)
            parts.space.recovered = sweeper.request
            await self._recover(parts)
            background.start_soon(sweeper.run)
            if not beginning.clean:
                sweeper.request()
            background.start_soon(parts.writer.watch)
            background.start_soon(parts.writeback.run)
            background.start_soon(self._refill, parts.staging)
            service = Service(self._settings, parts, started_s=time.monotonic())
            async with trio.open_nursery() as serving:
                serving.start_soon(self._handle_signals, parts.session)
                await serving.start(parts.session.serve)
                await serving.start(server.serve, self._state / registry.SOCKET, service)
                await self._await_answer()
                self._ready(None)
                log.info("serving %s at %s", safe_url(self._settings.source), self._settings.mountpoint)
                await parts.session.ended.wait()
                await self._drain(service)
                serving.cancel_scope.cancel()
            log.info("unmounted %s", self._settings.mountpoint)
            parts.files.note_touched()
            parts.cache.close()
            await local.journal.commit()
            background.cancel_scope.cancel()
        await trio.to_thread.run_sync(local.staging.close)

    async def _recover(self, parts: Parts) -> None:
        """Take up what the last run left in the journal."""
        try:
            outcome = await parts.recovery.run()
        except LuxError as exc:
            raise MountError(f"what the last run left cannot be finished: {exc}; try again") from None
        if outcome.files or outcome.deletes or outcome.moves:
            log.info(
                "the last run left %d changed files, %d deletes and %d renames: they go up now", outcome.files,
                outcome.deletes, outcome.moves,
            )
        await parts.recovery.abort_uploads()

    async def _refill(self, staging: Staging) -> None:
        """Keep spare staging files at hand, so that making a file is quick."""
        while True:
            if staging.spares_low:
                with contextlib.suppress(OSError):  # whoever makes a file will meet it
                    await trio.to_thread.run_sync(staging.refill)
            await trio.sleep(REFILL_INTERVAL_S)

    async def _drain(self, service: Service) -> None:
        """The mount is gone: bring what is dirty to the store, as long as that makes progress."""
        await service.drain(patience_s=DRAIN_PATIENCE_S if self._signalled is None else PATIENCE_S)

    async def _await_answer(self) -> None:
        """The tree answers when a stat of its root comes back."""
        with trio.move_on_after(ANSWER_DEADLINE_S):
            await trio.to_thread.run_sync(os.stat, self._settings.mountpoint, abandon_on_cancel=True)
            return
        raise MountError(f"{self._settings.mountpoint}: mounted, but does not answer; see the log")

    async def _handle_signals(self, session: Session) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                self._signalled = number
                log.info("unmounting on %s", signal.Signals(number).name)
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


def main() -> int:
    """Run as a process of its own: settings as JSON on stdin, one line of JSON to the descriptor of --ready-fd."""
    parser = argparse.ArgumentParser(prog="luxfuse.daemon")
    parser.add_argument("--ready-fd", type=int, required=True)
    ready_fd = parser.parse_args().ready_fd
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)

    def ready(error: str | None) -> None:
        os.write(ready_fd, msgspec.json.encode({"error": error}) + b"\n")
        os.close(ready_fd)

    return run(settings, ready)


if __name__ == "__main__":
    sys.exit(main())
