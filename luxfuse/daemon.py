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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from luxfuse import logs
from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.space import Space
from luxfuse.cache.sweep import Sweeper
from luxfuse.config import Settings
from luxfuse.control import registry, server
from luxfuse.errors import BucketMissing, LuxError, MountError, NotFound
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.session import Session
from luxfuse.index import lifecycle
from luxfuse.index.names import Names
from luxfuse.index.objects import Objects
from luxfuse.index.store import IndexStore
from luxfuse.service import Parts, Service
from luxfuse.tiers.directory import CacheDirectory
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import safe_url
from luxfuse.understore.retrying import Store
from luxfuse.vfs.ahead import FilesAhead, FillBehind
from luxfuse.vfs.attributes import Defaults
from luxfuse.vfs.files import Files
from luxfuse.vfs.filesystem import FileSystem
from luxfuse.vfs.listing import Lister
from luxfuse.vfs.namespace import Namespace

log = logging.getLogger(__name__)

Ready = Callable[[str | None], None]

FILES_OPEN = 65_536
PROBE_DEADLINE_S = 10.0
ANSWER_DEADLINE_S = 10.0
PATIENCE_S = 5.0
"""For how long files that are open when a signal comes may still be read."""
TOUCH_INTERVAL_S = 5.0
BASE_MEMORY_BYTES = 112 << 20
"""What the daemon takes before it caches a byte; the rest of --memory-limit goes to requests and pages in memory."""


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
                async with self._index(directory) as (index, beginning):
                    await self._serve(store, directory, index, beginning)
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

    @asynccontextmanager
    async def _index(self, directory: CacheDirectory) -> AsyncIterator[tuple[IndexStore, lifecycle.Beginning]]:
        name = hashlib.sha256(os.fsencode(directory.path)).hexdigest()[:16]
        path = Path(self._settings.state_dir, "index", name)
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

    async def _serve(
        self, store: Store, directory: CacheDirectory, index: IndexStore, beginning: lifecycle.Beginning
    ) -> None:
        async with trio.open_nursery() as background:
            parts = self._build(store, directory, index, beginning, background)
            background.start_soon(index.flusher)
            background.start_soon(store.watch_deadlines)
            background.start_soon(parts.space.watch)
            background.start_soon(self._note_touched, parts.files)
            sweeper = Sweeper(parts.cache, directory)
            parts.space.recovered = sweeper.request
            background.start_soon(sweeper.run)
            if not beginning.clean:
                sweeper.request()
            service = Service(self._settings, parts, started_s=time.monotonic())
            async with trio.open_nursery() as serving:
                serving.start_soon(self._handle_signals, parts.session)
                await serving.start(parts.session.serve)
                await serving.start(server.serve, self._state / registry.SOCKET, service)
                await self._await_answer()
                self._ready(None)
                log.info("serving %s at %s", safe_url(self._settings.source), self._settings.mountpoint)
                await parts.session.ended.wait()
                serving.cancel_scope.cancel()
            log.info("unmounted %s", self._settings.mountpoint)
            parts.files.note_touched()
            parts.cache.close()
            background.cancel_scope.cancel()

    def _build(
        self, store: Store, directory: CacheDirectory, index: IndexStore, beginning: lifecycle.Beginning,
        nursery: trio.Nursery,
    ) -> Parts:
        s = self._settings
        kernel = KernelSide()
        names = Names(index)
        lister = Lister(store=store, names=names, nursery=nursery)
        namespace = Namespace(
            store=store, names=names, lister=lister, kernel=kernel, metadata_ttl_s=s.metadata_ttl_s,
            negative_ttl_s=s.negative_ttl_s, nursery=nursery,
        )
        objects = Objects(index)
        space = Space(
            directory, objects, capacity_bytes=s.cache_dir.size_bytes, free_space_ratio=s.free_space_ratio,
            writable=s.read_mode != "no-cache",
        )
        cache = PageCache(
            store=store, objects=objects, directory=directory, space=space, source_id=s.source_id,
            epoch=beginning.epoch, memory_bytes=max(16 << 20, (s.memory_limit_bytes - BASE_MEMORY_BYTES) // 2),
            nursery=nursery,
        )
        ahead = FilesAhead(
            namespace=namespace, cache=cache, limit_bytes=s.readahead_bytes, largest_bytes=s.whole_file_threshold_bytes,
        )
        files = Files(
            namespace=namespace, cache=cache, kernel=kernel, ahead=ahead, behind=FillBehind(cache=cache, nursery=nursery),
            whole_file_bytes=s.whole_file_threshold_bytes, readahead_bytes=s.readahead_bytes,
        )

        def lost_files() -> None:
            lifecycle.adopt(index, directory.identity)
            cache.forget_all_pages()
            files.forget_all()

        space.lost_files = lost_files
        defaults = Defaults(
            uid=os.getuid() if s.uid is None else s.uid, gid=os.getgid() if s.gid is None else s.gid, umask=s.umask,
            mtime_ns=time.time_ns(),
        )
        fs = FileSystem(namespace=namespace, files=files, cache=cache, defaults=defaults, tier=s.cache_dir.tier)
        operations = Operations(fs, s.negative_ttl_s, read_only=s.read_only)
        session = Session(
            operations, kernel, mountpoint=s.mountpoint, source=safe_url(s.source), allow_other=s.allow_other,
            want_passthrough=s.passthrough and s.read_mode != "no-cache", cache_directory=directory.path,
        )
        return Parts(store, index, objects, space, cache, lister, namespace, ahead, files, fs, operations, kernel, session)

    async def _await_answer(self) -> None:
        """The tree answers when a stat of its root comes back."""
        with trio.move_on_after(ANSWER_DEADLINE_S):
            await trio.to_thread.run_sync(os.stat, self._settings.mountpoint, abandon_on_cancel=True)
            return
        raise MountError(f"{self._settings.mountpoint}: mounted, but does not answer; see the log")

    async def _handle_signals(self, session: Session) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
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
