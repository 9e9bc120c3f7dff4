"""Carries out what the control socket is asked for."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from luxfuse.daemon.running import Running
from luxfuse.daemon.status import Status
from luxfuse.daemon.systemd import Systemd
from luxfuse.daemon.upgrading import Upgrades
from luxfuse.errors import LuxError, MountError
from luxfuse.index.names import ROOT_INODE
from luxfuse.orders.backlogs import Backlogs
from luxfuse.orders.check import CheckProgress, together
from luxfuse.orders.jobs import watch
from luxfuse.orders.manifest import Export, Import, Manifests
from luxfuse.types import TtlAction
from luxfuse.volume.parts import VolumeParts


class Service:
    """Carries out the orders of `luxfuse.control.orders.ORDERS`."""

    def __init__(
        self, running: Running, reread: Callable[[], Awaitable[list[str]]], upgrades: Upgrades, systemd: Systemd
    ) -> None:
        """``reread``: reads the configuration file again; returns the names of what changed."""
        self._upgrades = upgrades
        self._systemd = systemd
        self._running = running
        self._reread = reread
        self.backlogs = Backlogs(lambda: [(path, each.backlog) for path, each in running.volumes()])
        self._status = Status(running, self.backlogs)
        self._schedules = itertools.count(1)

    def status(self) -> dict[str, object]:
        """Return the status document; see `luxfuse.control.status`."""
        return self._status.document()

    def metrics(self) -> str:
        """Return the same numbers as Prometheus text."""
        from luxfuse.control import metrics  # only where somebody asks for them

        return metrics.render(self.status())[0].decode()

    async def refresh(self, paths: list[str]) -> list[str]:
        """Ask the store again about each path; returns one line for each that failed."""
        errors = []
        for path in paths:
            try:
                volume, inside = self._running.parts.volumes.split(path)
                with volume as fs:
                    await fs.refresh(inside)
            except LuxError as exc:
                errors.append(f"{path}: {exc}")
        return errors

    async def persist(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below each path to the store; see `Backlogs.persist`. The last item has the failures."""
        known, missing = [], []
        for path in paths:
            if self.backlogs.has_changes(path) or await self._exists(path):
                known.append(path)
            else:
                missing.append(f"{path}: there is no such file or directory")
        async with aclosing(self.backlogs.persist(known)) as steps:
            async for step in steps:
                line: dict[str, object] = asdict(step)
                if step.done:
                    line["failures"] = [*missing, *step.failures]
                yield line

    async def _exists(self, path: str) -> bool:
        inode = ROOT_INODE
        try:
            for name in path.split("/") if path else ():
                inode = (await self._running.parts.volumes.lookup(inode, os.fsencode(name))).inode
        except LuxError as exc:
            return exc.errno not in (errno.ENOENT, errno.ENOTDIR)
        return True

    async def reload(self) -> list[str]:
        """Take up a changed configuration file; returns the names of what changed. Raises `ConfigError`."""
        with self._systemd.reloading():
            return await self._reread()

    async def pin(self, paths: list[str]) -> dict[str, object]:
        """Never evict what is at and below the paths; returns failures and notes."""
        place, parts, inside = self._one_volume(paths)
        return _placed(place, asdict(await parts.retention.pin(inside)))

    async def unpin(self, paths: list[str]) -> dict[str, object]:
        """Let what is at and below the paths be evicted again; returns failures."""
        place, parts, inside = self._one_volume(paths)
        return _placed(place, asdict(await parts.retention.unpin(inside)))

    async def limit(self, paths: list[str], seconds: float | None, action: TtlAction) -> dict[str, object]:
        """Set how long what is at and below the paths is kept; returns failures."""
        place, parts, inside = self._one_volume(paths)
        return _placed(place, asdict(await parts.retention.limit(inside, seconds, action)))

    async def replicate(self, paths: list[str], least: int, most: int | None) -> dict[str, object]:
        """Have what is at and below the paths held by so many nodes; returns failures and notes. Raises `PathsRefused`."""
        if self._running.replicas is None:
            raise PathsRefused("the mount is in no cluster; mount it with --cluster-key-file, see: luxfuse cluster --help")
        place, parts, inside = self._one_volume(paths)
        missing = {path: await parts.inventory.missing(path) for path in inside} if least else {}
        failures = [f"{path or '.'}: {why}" for path, why in missing.items() if why is not None]
        there = [path for path in inside if missing.get(path) is None]
        try:
            refused, notes = await self._running.replicas.order(parts, there, least, most)
        except OSError as exc:
            raise PathsRefused(f"the rules cannot be kept: {exc}") from exc
        return {**_placed(place, {"failures": [*failures, *refused]}), "notes": notes}

    async def drain(self) -> AsyncGenerator[dict[str, object], None]:
        """Bring everything that is closed to the store, while this is iterated; ends when it is there."""
        async with aclosing(self.backlogs.drain()) as steps:
            async for step in steps:
                self._systemd.goes_on(stalled_s=step.stalled_s)
                yield asdict(step)

    async def load(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Bring what is at and below the paths into the cache, while this is iterated; ends when it is there."""
        place, parts, inside = self._one_volume(paths)
        job = parts.loads.start(inside)
        try:
            async with aclosing(watch(job)) as steps:
                async for step in steps:
                    yield _placed(place, asdict(step))
        finally:
            job.stop()

    def start_load(self, paths: list[str]) -> int:
        """The same in the background; returns the number of the job. Raises `LoadRefused`."""
        _, parts, inside = self._one_volume(paths)
        return parts.loads.start(inside).number

    def loads(self) -> list[dict[str, object]]:
        """Return how far the loads are: those that run, and the last that ended."""
        return [
            _placed(place, asdict(progress))
            for place, parts in self._running.volumes()
            for progress in parts.loads.progress()
        ]

    def stop_loads(self) -> int:
        """End all loads; returns how many those are."""
        return sum(parts.loads.stop() for _, parts in self._running.volumes())

    async def begin_schedule(self, path: str, window_bytes: int | None) -> AsyncGenerator[dict[str, object], None]:
        """Follow a schedule while this is iterated; see `tell`. Raises `ScheduleRefused`."""
        _, parts, _ = self._one_volume([path])
        job = parts.schedules.begin(next(self._schedules), window_bytes)
        try:
            yield {"schedule": job.number, "room": job.schedule.room}
            await job.ended.wait()
            yield {"done": True, "files": job.files, "bytes": job.bytes, "failed": job.failed}
        finally:
            parts.schedules.end(job)

    def tell(self, schedule: int, paths: list[str], position: int | None) -> int:
        """Add the names that come next in a schedule; returns how many more it takes now. Raises `MountError`."""
        for place, parts in self._running.volumes():
            job = parts.schedules.get(schedule)
            if job is None:
                continue
            if len(paths) > job.schedule.room:
                raise PathsRefused(f"{len(paths)} names are more than the schedule has room for: {job.schedule.room}")
            split = [self._running.parts.volumes.split(path) for path in paths]
            # A name of another under-store keeps its place, and is not fetched.
            here = self._running.parts.volumes.split(place)[0] if place else self._running.parts.volumes.main
            return job.tell([inside if volume is here else "" for volume, inside in split], position)
        raise MountError(f"schedule {schedule} has ended; begin another one")

    async def export_index(self, path: str, file: str) -> AsyncGenerator[dict[str, object], None]:
        """Write the names of an under-store to a manifest, while this is iterated."""
        manifests = self._manifests(path)
        async with aclosing(_watched(manifests.export(file))) as steps:
            async for step in steps:
                yield step

    async def import_index(self, path: str, file: str) -> AsyncGenerator[dict[str, object], None]:
        """Take up the names of a manifest, while this is iterated."""
        manifests = self._manifests(path)
        async with aclosing(_watched(manifests.take_up(file))) as steps:
            async for step in steps:
                yield step

    async def free(self, paths: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Drop what is cached at and below the paths; the last item has all of it."""
        place, parts, inside = self._one_volume(paths)
        async with aclosing(parts.inventory.free(inside)) as steps:
            async for step in steps:
                yield _placed(place, asdict(step))

    async def check(self, *, repair: bool) -> AsyncGenerator[dict[str, object], None]:
        """Compare the cache with what is recorded of it, one under-store after the other, while this is iterated.

        Raises `CheckRefused`.
        """
        before: list[CheckProgress] = []
        volumes = self._running.volumes()
        for number, (place, parts) in enumerate(volumes, 1):
            job = parts.checks.start(repair=repair, place=place)
            try:
                async with aclosing(watch(job)) as steps:
                    async for step in steps:
                        yield asdict(together([*before, step], last=number == len(volumes)))
            finally:
                job.stop()
            before.append(job.progress())

    async def trace(self, path: str, pid: int | None) -> AsyncGenerator[dict[str, object], None]:
        """Tell of requests as they are answered, while this is iterated. Raises `MountError`."""
        async with aclosing(self._running.parts.tracing.watch(path, pid)) as steps:
            async for step in steps:
                yield step

    async def locate(self, paths: list[str]) -> list[dict[str, object]]:
        """Return what is cached of each path, and where."""
        found: list[dict[str, object]] = []
        for path in paths:
            place, parts, inside = self._one_volume([path])
            for each in await parts.inventory.locate(inside):
                found.append({**each, "path": f"{place}/{each['path']}".strip("/")})
        return found

    def _one_volume(self, paths: list[str]) -> tuple[str, VolumeParts, list[str]]:
        """Return where the volume of the paths is attached, its parts, and what the paths are called in it."""
        split = [self._running.parts.volumes.split(path) for path in paths]
        if len({volume.number for volume, _ in split}) > 1:
            raise PathsRefused("the paths are in several under-stores of the mount; name those of one at a time")
        place = paths[0][: len(paths[0]) - len(split[0][1])].rstrip("/") if paths else ""
        parts = dict(self._running.volumes()).get(place)
        if parts is None:
            raise PathsRefused(f"{place}: the under-store that is attached there cannot be reached")
        return place, parts, [inside for _, inside in split]

    def _manifests(self, path: str) -> Manifests:
        """Return those of the under-store whose root is ``path``: a manifest has all of one. Raises `PathsRefused`."""
        place, parts, (inside,) = self._one_volume([path])
        if inside:
            mountpoint = self._running.settings.mountpoint
            root = f"{mountpoint}/{place}".rstrip("/")
            source = parts.manifests.source.rstrip("/")
            if "://" not in source:  # as `index export` takes no plain path for a source
                source = f"file://{source}"
            raise PathsRefused(
                f"{mountpoint}/{path}: a manifest has all names of an under-store; give {root}, or export and mount "
                f"{source}/{inside}"
            )
        return parts.manifests

    async def attach(self, source: str, path: str, options: dict[str, Any]) -> list[str]:
        """Attach a further under-store; returns lines worth knowing."""
        return await self._running.attached.attach(self._running.settings, source, path, options)

    async def detach(self, path: str, *, force: bool) -> AsyncGenerator[dict[str, object], None]:
        """Take an attached under-store away; yields how far that is."""
        async with aclosing(self._running.attached.detach(path, force=force)) as steps:
            async for step in steps:
                yield asdict(step)

    async def upgrade(self, daemon: list[str], keeper: list[str]) -> AsyncGenerator[dict[str, object], None]:
        """Leave the mount to another luxfuse; yields what comes next. Raises `MountError` if it stays."""
        async with aclosing(self._upgrades.hand_over(daemon, keeper)) as steps:
            async for step in steps:
                yield step

    async def unmount(self, *, lazy: bool) -> None:
        """Take the mount away; the daemon then brings what is left to the store, and ends.

        Raises `MountError` where it is busy.
        """
        await self._running.parts.session.unmount(lazy=lazy)
        self.backlogs.hasten()


class PathsRefused(LuxError):
    """An order cannot be given for these paths. The text is one line."""


async def _watched(job: Export | Import) -> AsyncGenerator[dict[str, object], None]:
    """Yield how far a job is, which ends with this. Raises the reason for which it ended early."""
    try:
        async with aclosing(watch(job)) as steps:
            async for step in steps:
                yield asdict(step)
    finally:
        job.stop()


def _placed(place: str, step: dict[str, Any]) -> dict[str, object]:
    """Return progress with paths relative to the mount instead of to the volume at ``place``."""
    if place:
        for name in {"paths", "failures", "lines", "notes"} & set(step):
            step[name] = [f"{place}/{text}".rstrip("/") for text in step[name]]
    return step
