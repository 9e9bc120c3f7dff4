"""The composition root: builds every part of one mount, owns the root nursery, and takes everything down in order."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from luxfuse import lasting
from luxfuse.config import Settings
from luxfuse.control import registry, server
from luxfuse.daemon import beside, limits, logs
from luxfuse.daemon.attachments import Attachments
from luxfuse.daemon.early import EarlySignals
from luxfuse.daemon.parts import Parts, build
from luxfuse.daemon.reload import Reloader
from luxfuse.daemon.running import Running
from luxfuse.daemon.service import Service
from luxfuse.daemon.succession import Succession, take_over, was_served, was_taken_away
from luxfuse.daemon.systemd import Systemd
from luxfuse.daemon.upgrading import Upgrades
from luxfuse.errors import ConfigError, MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.session import Session
from luxfuse.keeper import saying
from luxfuse.orders.backlogs import Backlogs
from luxfuse.understore.failures import safe_url
from luxfuse.volume.life import VolumeLife, one_line
from luxfuse.volume.opened import Opened

if TYPE_CHECKING:
    from luxfuse.cluster.node import Cluster

log = logging.getLogger(__name__)


class Ready(Protocol):
    """Told once how mounting went: ``error`` is one line, or None; ``notes`` are lines for the caller."""

    def __call__(self, error: str | None, notes: Sequence[str] = (), /) -> None:
        """Take it."""


COLLECT_AFTER = 5_000
"""Objects made and not dropped between two looks for cycles, of which there are hardly any; after 700, as is Python's
default, a load of small files spends a fourteenth of its processor time on that."""
ANSWER_DEADLINE_S = 10.0
PATIENCE_S = 5.0
"""For how long files that are open when a signal comes may be used; and then, how long closed files may be uploaded."""
DRAIN_PATIENCE_S = 60.0
"""After an unmount, for how long without progress the store is waited for; the rest is uploaded at the next mount."""
STARTING_INTERVAL_S = 5.0
"""How often the command that mounts is told that it takes long."""


def run(
    settings: Settings,
    ready: Ready,
    waiting: Callable[[str], None] = lambda _why: None,
    held: tuple[int, int] | None = None,
) -> int:
    """Mount, call ``ready(None, notes)`` once the tree answers, serve until unmounted; returns the exit code.

    Before that every failure is given to ``ready`` as one line, and the result is 1. While that takes long, ``waiting``
    is told why, again and again. ``held``: the device and the estate, by descriptor, that a keeper holds; if a daemon
    served before, this one goes on.
    """
    started = False

    def report(error: str | None, notes: Sequence[str] = ()) -> None:
        nonlocal started
        started = started or error is None
        ready(error, notes)

    limits.raise_file_limit()
    limits.limit_arenas()
    gc.freeze()  # modules stay
    gc.set_threshold(COLLECT_AFTER, 10, 10)
    os.umask(0o077)  # whatever the daemon makes, rotated logs too, is the user's alone
    try:
        with registry.claim(settings, inherited=held is not None and was_served(held[1])) as claim, _left(claim, held):
            logs.configure(settings, claim.directory)
            succession = take_over(*held) if held is not None else None
            if succession is None or not succession.inherited:
                mounts.check(settings.mountpoint)
            elif not succession.estate.exact:
                log.warning("the daemon before this one had a failing disk, and has not left all that programs have open")
            early = EarlySignals()
            if succession is not None and succession.inherited:
                early.keep()
            later = None
            if succession is not None:
                settings, later = succession.settings(settings)
                logging.getLogger().setLevel(settings.log_level.upper())
            daemon = _Daemon(settings, later, claim.directory, report, waiting, succession, early)
            trio.run(daemon.main, strict_exception_groups=True)
            if succession is not None:
                succession.estate.end()
        return 0
    except BaseException as exc:
        if started:
            log.critical("the daemon ends", exc_info=exc)
        elif held is not None and isinstance(exc, Exception) and was_taken_away(*held):
            report(f"{settings.mountpoint}: the mount was taken away as the daemon began")
            log.info("the mount was taken away as the daemon began: %s", type(exc).__name__)
        else:
            error = one_line(exc, "mounting")
            if held is not None and was_served(held[1]) and not settings.foreground:  # where it is said on stderr
                log.critical("the daemon cannot go on: %s", error)
            report(error)
        if not isinstance(exc, Exception):
            raise
        return 1


@contextlib.contextmanager
def _left(claim: registry.Claim, held: tuple[int, int] | None) -> Iterator[None]:
    """If this daemon fails in the block, and a keeper is to start another one, leave the mount to that, and all locks."""
    try:
        yield
    except BaseException:
        if held is not None and was_served(held[1]) and not mounts.is_gone(held[0]) and saying.is_heard():
            claim.leave()
        else:
            lasting.give_back_the_rest()
        raise
    lasting.give_back_the_rest()


class _Daemon:
    def __init__(
        self,
        settings: Settings,
        later: Settings | None,
        state: Path,
        ready: Ready,
        waiting: Callable[[str], None],
        succession: Succession | None,
        early: EarlySignals,
    ) -> None:
        self._settings = settings
        self._later = later
        self._systemd = Systemd(wanted=settings.foreground)
        self._early = early
        self._succession = succession
        self._state = state
        self._ready = ready
        self._waiting = waiting
        self._notes: list[str] = []
        self._started = False
        self._doing = ""
        """The work that may take long now."""
        self._opened = trio.Event()
        self._drain_scope = trio.CancelScope()

    async def main(self) -> None:
        async with trio.open_nursery() as talking:
            talking.start_soon(self._say_what_takes_long)
            talking.start_soon(self._systemd.beat)
            async with self._taking_part() as cluster:
                await self._run(cluster)
            talking.cancel_scope.cancel()

    def _taking_part(self) -> AbstractAsyncContextManager[Cluster | None]:
        key_file = self._settings.cluster_key_file
        if key_file is None:
            return nullcontext()
        # Only here: what nodes need is a fifth of all modules, and most mounts are in no cluster.
        from luxfuse.cluster.node import taking_part

        return taking_part(self._settings, key_file, self._state)

    async def _run(self, cluster: Cluster | None) -> None:
        estate = self._succession.of_volume(0) if self._succession is not None else None
        life = VolumeLife(self._settings, self._note, cluster, estate)
        async with life.running(self._build) as parts:
            self._settings = life.settings
            async with trio.open_nursery() as volumes:
                attachments = Attachments(life.settings, parts, self._state, volumes, cluster, self._succession)
                self._doing = "attaching what was attached before"
                await attachments.restore(self._note)
                if life.settings.manifest is not None:
                    self._doing = "taking up the manifest"
                    await parts.manifests.at_mount(life.settings.manifest, self._note)
                self._doing = "mounting"
                await self._serve(parts, attachments, cluster)
                await attachments.close()

    def _build(self, opened: Opened) -> Parts:
        self._doing = "taking up what the last run left"
        self._opened.set()
        return build(opened, self._succession)

    async def _serve(self, parts: Parts, attachments: Attachments, cluster: Cluster | None) -> None:
        replicas = cluster.replicas if cluster is not None else None
        running = Running(self._settings, parts, attachments, cluster, replicas, time.monotonic(), self._succession)
        reloader = Reloader(running, cluster)
        async with trio.open_nursery() as serving:
            service = Service(running, reloader.reload, Upgrades(running, serving), self._systemd)
            serving.start_soon(self._handle_signals, parts.session)
            serving.start_soon(parts.watchdog.run)
            serving.start_soon(limits.give_memory_back)
            serving.start_soon(self._reload_on_hangup, service)
            await serving.start(parts.session.serve)
            await serving.start(server.serve, self._state / registry.SOCKET, service)
            inherited = self._succession is not None and self._succession.inherited
            await beside.begin(serving, running, service.status, successor=inherited)
            await self._await_answer()
            self._started = True
            if self._succession is not None:
                self._succession.estate.serve()
            self._systemd.serves(f"serving {safe_url(self._settings.source)} at {self._settings.mountpoint}")
            self._ready(None, self._notes)
            self._early.replay()
            attachments.give_back_locks()
            log.info("serving %s at %s", safe_url(self._settings.source), self._settings.mountpoint)
            serving.start_soon(attachments.retry)
            if self._later is not None:
                serving.start_soon(reloader.go_over, self._later)
            await parts.session.ended.wait()
            self._systemd.ends()
            parts.loads.stop()
            parts.schedules.stop()
            await self._drain(service.backlogs)
            serving.cancel_scope.cancel()
        log.info("unmounted %s", self._settings.mountpoint)

    def _note(self, line: str) -> None:
        log.info("%s", line)
        self._notes.append(line)

    async def _say_what_takes_long(self) -> None:
        await self._opened.wait()
        while not self._started:
            await trio.sleep(STARTING_INTERVAL_S)
            if not self._started:
                self._systemd.goes_on(f"still {self._doing}")
                self._waiting(f"{safe_url(self._settings.source)}: still {self._doing}")

    async def _drain(self, backlog: Backlogs) -> None:
        """The mount is gone: bring what is dirty to the store, as long as that makes progress."""
        with self._drain_scope:
            async with aclosing(backlog.drain()) as steps:
                async for step in steps:
                    self._systemd.goes_on(f"unmounted; {step.files} files are still uploaded", step.stalled_s)
                    if step.stalled_s > DRAIN_PATIENCE_S:
                        break
        tally = backlog.tally()
        if tally.files or tally.deletes:
            log.info(
                "%d files and %d deletes are not in the under-store; the next mount brings them there",
                tally.files,
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
                    logs.reopen()
                except OSError as exc:
                    log.warning("the log file cannot be opened anew: %s", exc)
                try:
                    await service.reload()
                except ConfigError as exc:
                    # Without a file there is nothing to read: it was for the log.
                    level = logging.INFO if self._settings.config_file is None else logging.WARNING
                    log.log(level, "the configuration stays as it was: %s", exc)

    async def _leave(self, session: Session) -> None:
        """Take the mount away; programs that have files open get a moment to end."""
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
