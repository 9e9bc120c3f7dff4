"""Further under-stores in a running mount: attaching and detaching them, and the record of that.

Each is a volume with a life of its own (`volume.life`), a task here. Those on record (`attached_file`) the next mount
attaches again. One that cannot be attached then keeps its place, answers EIO there, and is tried again and again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from luxfuse import lasting
from luxfuse.config import Settings
from luxfuse.configuration import building
from luxfuse.control.attached_file import AttachedFile, Record, Recorded
from luxfuse.core.memory import Shares
from luxfuse.core.names import NAME_MAX_BYTES
from luxfuse.daemon.attached import Attached
from luxfuse.daemon.leaving import bring_up, commit, fall_silent, insist_on_idle, let_end
from luxfuse.daemon.parts import Parts
from luxfuse.daemon.running import VolumeState
from luxfuse.daemon.succession import Succession
from luxfuse.errors import ConfigError, LuxError, MountError
from luxfuse.fuse.places import check_places
from luxfuse.keeper import saying
from luxfuse.orders.backlog import Progress
from luxfuse.steps import reached
from luxfuse.understore.failures import safe_url
from luxfuse.vfs.backings import Backings
from luxfuse.vfs.volumes import Volume
from luxfuse.volume.assembly import build_tree
from luxfuse.volume.life import VolumeLife, one_line
from luxfuse.volume.opened import Opened
from luxfuse.volume.parts import VolumeParts

if TYPE_CHECKING:
    from luxfuse.cluster.node import Cluster

log = logging.getLogger(__name__)

MOST = 31
"""Under-stores attached at once: each may have 16,384 files in passthrough, of a million descriptors."""
NUMBERS = 255
MEMORY = Shares(32 << 20, 32 << 20, 32 << 20, most_dirty=20_000)
"""Of one attached under-store."""
RETRY_S = 5.0
TELL_S = 0.5

_NOTHING_YET = Progress(0, 0, 0, 0, 0, 0, 0.0, None)


class Attachments:
    """The attached under-stores of one mount; implements `luxfuse.daemon.running.AttachedVolumes`."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        directory: Path,
        nursery: trio.Nursery,
        cluster: Cluster | None = None,
        succession: Succession | None = None,
    ) -> None:
        """``directory``: where to remember them; their tasks run in ``nursery``. ``cluster``: they take part in it."""
        self._succession = succession
        self._cluster = cluster
        self._settings = settings
        self._main = parts
        self._tree = parts.volumes
        self._file = AttachedFile(directory)
        self._nursery = nursery
        self._attached: dict[str, Attached] = {}
        self._lingering: dict[int, tuple[str, Backings]] = {}
        """Of volumes that are gone and have files open in passthrough: by number, source id and backings."""
        self._last_number = 0
        self._recording = trio.Lock()
        self._closing = False

    # -- what there is

    def volumes(self) -> list[VolumeState]:
        """Return all attached volumes, by path."""
        return [
            VolumeState(a.path, a.settings, a.state, self._error(a), a.parts)
            for a in sorted(self._attached.values(), key=lambda a: a.path)
        ]

    def _error(self, a: Attached) -> str | None:
        if a.error is None and a.hung and not self._tree.is_shown(a.volume):
            return "the directory that it is attached in is gone from the under-store"
        return a.error

    def _where(self, path: str) -> str:
        return str(Path(self._settings.mountpoint, path))

    # -- attaching

    async def attach(self, base: Settings, source: str, path: str, options: Mapping[str, Any]) -> list[str]:
        """Serve ``source`` at ``path``. Raises `LuxError` with one line."""
        self._settings = base
        settings = building.attached(self._settings, source, options)
        await trio.to_thread.run_sync(check_places, settings)
        self._check(path, settings)
        record = Record(path=path, source=source, options=dict(options), number=self._next_number())
        a = self._attached[path] = Attached(record, settings, Volume(record.number), on_record=False)
        try:
            await self._check_directory(path)
            await self._start(a)
            try:
                await self._hang(a)
                a.on_record = True
                await self._record()
                a.state = "serving" if a.parts is not None else "unreachable"  # nobody detaches it before
            except BaseException:
                a.on_record = False
                with trio.CancelScope(shield=True):
                    await self._take_down(a)
                raise
        except BaseException:
            self._forget(a)
            raise
        await self._tree.settle()
        log.info("attached %s at %s", safe_url(source), self._where(path))
        return a.notes

    def _forget(self, a: Attached) -> None:
        """A volume is gone, and nobody goes on with it; it may have failed before, and have set its locks aside."""
        number = self._attached.pop(a.path).record.number
        if self._succession is not None:
            self._succession.forget_volume(number)
        self.give_back_locks()

    def give_back_locks(self) -> None:
        """Give back the locks that nobody has taken up, unless they may be those of a volume that is tried again."""
        if all(a.state != "unreachable" for a in self._attached.values()):
            lasting.give_back_the_rest()

    def _check(self, path: str, settings: Settings) -> None:
        where = self._where(path)
        if not path or any(part in ("", ".", "..") for part in path.split("/")):
            raise MountError(f"{where} is the mountpoint itself or no path; name something inside the mount")
        if path.encode(errors="ignore") != os.fsencode(path) or len(os.fsencode(path.rpartition("/")[2])) > NAME_MAX_BYTES:
            raise MountError(f"{where}: the name must be UTF-8, of at most {NAME_MAX_BYTES} bytes")
        if path in self._attached:
            known = self._attached[path]
            raise MountError(f"{where}: {safe_url(known.record.source)} is attached there already; detach it first")
        if len(self._attached) >= MOST:
            raise MountError(f"{where}: {MOST} under-stores are attached, which is the most; detach one first")
        places = {self._settings.source_id: ""} | {a.settings.source_id: a.path for a in self._attached.values()}
        if (other := places.get(settings.source_id)) is not None:
            raise MountError(f"{where}: {safe_url(settings.source)} is in this mount already, at {self._where(other)}")

    async def _check_directory(self, path: str) -> None:
        try:
            await self._tree.way_to(path)
        except LuxError as exc:
            raise MountError(f"{self._where(path)}: cannot be attached there: {exc}") from None

    def _next_number(self) -> int:
        taken = {a.record.number for a in self._attached.values()} | set(self._lingering)
        number = self._last_number % NUMBERS + 1
        while number in taken:
            number = number % NUMBERS + 1
        self._last_number = number
        if self._succession is not None:
            self._succession.keep_last_number(number)
        return number

    async def _hang(self, a: Attached) -> None:
        try:
            await self._tree.attach(a.volume, a.path)
        except LuxError as exc:
            raise MountError(f"{self._where(a.path)}: cannot be attached there: {exc}") from None
        a.hung = True

    async def _start(self, a: Attached) -> None:
        """Open the volume and recover what its last run left. Raises `MountError`."""
        for number, (source_id, backings) in list(self._lingering.items()):
            if backings.retire_all_idle():
                del self._lingering[number]
                self._main.shares.drop(number)
            elif source_id == a.settings.source_id:
                raise MountError(f"{safe_url(a.record.source)}: files are still open from before it was detached by force")
        a.leave, a.ended = trio.Event(), trio.Event()
        try:
            await self._nursery.start(self._run, a)
        except Exception as exc:  # noqa: BLE001 (whatever it is: the mount goes on without this volume)
            raise MountError(one_line(exc, f"attaching {safe_url(a.record.source)}")) from None

    async def _run(self, a: Attached, task_status: trio.TaskStatus[None]) -> None:
        """One volume, from opening it to leaving it."""

        def build(opened: Opened) -> VolumeParts:
            return build_tree(opened, self._main.shares.share(a.record.number), memory=MEMORY)

        fresh = a.state == "attaching"
        estate = self._succession.of_volume(a.record.number, fresh=fresh) if self._succession is not None else None
        life = VolumeLife(a.settings, a.notes.append, self._cluster, estate)
        backings: Backings | None = None
        try:
            async with life.running(build) as parts:
                backings, a.parts = parts.files.backings, parts
                a.settings = life.settings
                a.volume.serve(parts.fs, negative_ttl_s=a.settings.negative_ttl_s, read_only=a.settings.read_only)
                task_status.started()
                await a.leave.wait()
                if self._cluster is not None:
                    self._cluster.remove(a.settings)
                if not self._closing:
                    await fall_silent(parts, a.settings.request_timeout_s)
        except Exception as exc:
            if backings is None:
                raise
            log.critical("%s: the attached under-store failed", self._where(a.path), exc_info=exc)
            a.error = "it failed in an unexpected way; see the log"
            if a.state == "serving":  # else somebody attaches or detaches it right now, and says how that ends
                a.state = "unreachable"
        finally:
            a.parts = None
            if self._succession is not None:
                self._succession.rest(a.record.number)
            self._tree.withdraw(a.volume)
            if backings is not None:
                backings.forget_all()
            if backings is None or backings.retire_all_idle():
                self._main.shares.drop(a.record.number)
            else:
                self._lingering[a.record.number] = (a.settings.source_id, backings)
            a.ended.set()

    # -- detaching

    async def detach(self, path: str, *, force: bool) -> AsyncGenerator[Progress, None]:
        """Bring what was written in a volume to its store, and take it out of the tree; yields how far that is.

        ``force``: at once, whatever is open or not in the store; that is kept for the next attach of the source.
        Raises `MountError`, with everything as it was.
        """
        a = self._detachable(path)
        a.state, a.refused, gone = "detaching", None, False
        a.gone = trio.Event()
        try:
            async with a.trying:
                if self._attached.get(path) is not a:
                    raise MountError(f"{self._where(path)}: it was detached meanwhile")
                while not force and a.parts is not None:
                    yield _NOTHING_YET  # to look at all processes takes seconds on a busy machine
                    await insist_on_idle(a.volume, self._where(path))
                    async with aclosing(bring_up(a.parts.backlog, self._where(path))) as steps:
                        async for step in steps:
                            yield step
                    yield _NOTHING_YET
                    await insist_on_idle(a.volume, self._where(path))
                    if a.parts is None or not a.parts.backlog.any_due:
                        break
                gone = True
                self._hide(a)
                self._nursery.start_soon(self._end, a)
        finally:
            if not gone:
                a.state = "serving" if a.parts is not None else "unreachable"
        while not a.gone.is_set():  # it goes on though the client hangs up
            yield _NOTHING_YET
            with trio.move_on_after(TELL_S):
                await a.gone.wait()
        if a.refused is not None:
            raise MountError(f"{a.refused}; it stays attached")
        yield Progress(0, 0, 0, 0, 0, 0, 0.0, None, done=True)

    def _detachable(self, path: str) -> Attached:
        where = self._where(path)
        a = self._attached.get(path)
        if a is None:
            raise MountError(f"{where}: nothing is attached there; see: luxfuse status {self._settings.mountpoint}")
        if a.state in ("attaching", "detaching"):
            raise MountError(f"{where}: somebody else is {a.state} it right now")
        inside = next((other for other in self._attached if other.startswith(path + "/")), None)
        if inside is not None:
            raise MountError(f"{where} is busy: another under-store is attached inside, at {self._where(inside)}")
        return a

    def _hide(self, a: Attached) -> None:
        if a.hung:
            self._tree.detach(a.volume)
            a.hung = False

    async def _end(self, a: Attached) -> None:
        """Finish a detach: it is off the record before anything that a successor needs is given up."""
        try:
            await let_end(a.volume)
            if a.parts is not None:
                await commit(a.parts)
            a.on_record = False
            try:
                await self._record()
            except MountError as exc:
                await self._stay(a, exc)
                return
            reached("detach.recorded")
            await self._take_down(a)
            self._forget(a)
            await trio.to_thread.run_sync(gc.collect)  # its parts know each other: pages and connections go now
            await self._tree.settle()
            log.info("detached %s from %s", safe_url(a.record.source), self._where(a.path))
        finally:
            a.gone.set()

    async def _stay(self, a: Attached, why: MountError) -> None:
        """A detach has failed."""
        log.warning("%s; it stays attached", why)
        a.on_record, a.refused = True, str(why)
        try:
            await self._hang(a)
        except MountError as exc:
            await self._take_down(a)
            a.error = str(exc)
        a.state = "serving" if a.parts is not None else "unreachable"

    async def _take_down(self, a: Attached) -> None:
        """Take a volume out of the tree and end it."""
        self._hide(a)
        await let_end(a.volume)
        if a.parts is not None:
            a.leave.set()
            await a.ended.wait()

    # -- over several mounts

    async def restore(self, note: Callable[[str], None]) -> None:
        """Attach what was attached when the last mount ended; ``note`` takes lines for the command that mounts."""
        recorded = await trio.to_thread.run_sync(self._file.read)
        self._last_number = recorded.last_number
        if self._succession is not None and self._succession.inherited:
            self._last_number = self._succession.last_number or recorded.last_number
            self._succession.forget_other_volumes({record.number for record in recorded.attached})
        for record in sorted(recorded.attached, key=lambda record: record.path.count("/")):
            settings = msgspec.structs.replace(self._settings, source=record.source)
            with contextlib.suppress(ConfigError):  # which is told when it is tried
                settings = building.attached(self._settings, record.source, record.options)
            a = self._attached[record.path] = Attached(record, settings, Volume(record.number), "unreachable")
            await self._try(a)
            saying.goes_on()
            for line in a.notes:
                note(line)
            a.notes.clear()
            if a.state == "unreachable":
                note(f"{self._where(a.path)}: cannot be attached yet, and is tried again: {a.error}")

    async def _try(self, a: Attached) -> None:
        """Attach what was to be attached already."""
        async with a.trying:
            if a.state != "unreachable":
                return
            try:
                if not a.hung:
                    await self._hang(a)
                a.settings = building.attached(self._settings, a.record.source, a.record.options)
                if a.settings.source_id == self._settings.source_id:
                    raise MountError(f"{safe_url(a.record.source)} is what the mount itself shows now; detach it")
                await self._start(a)
            except LuxError as exc:
                if str(exc) != a.error:
                    log.info("%s is not attached yet: %s", self._where(a.path), exc)
                a.error = str(exc)
                return
            if a.parts is not None:  # it has not failed at once
                a.error = None
                if a.state == "unreachable":  # not where it is to be detached, which waits for this
                    a.state = "serving"

    async def retry(self) -> None:
        """Try again what could not be attached; until cancelled."""
        while True:
            await trio.sleep(RETRY_S)
            for a in list(self._attached.values()):
                if a.state == "unreachable":
                    await self._try(a)
                    self.give_back_locks()

    async def close(self) -> None:
        """End all volumes, the innermost first, as the process is about to end; they stay on record."""
        self._closing = True
        for a in sorted(self._attached.values(), key=lambda a: a.path.count("/"), reverse=True):
            if a.parts is not None:
                a.leave.set()
                await a.ended.wait()

    async def _record(self) -> None:
        """Remember what is attached. Raises `MountError`."""
        async with self._recording:
            records = [a.record for a in self._attached.values() if a.on_record]
            recorded = Recorded(last_number=self._last_number, attached=records)
            await trio.to_thread.run_sync(self._file.write, recorded)
