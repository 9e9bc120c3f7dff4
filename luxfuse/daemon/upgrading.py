"""Hands a mount over to another luxfuse, on order, while programs use it.

The other one is tried first, beside this daemon (`daemon.trial`). Only then requests come to rest: no more are read, those
under way are answered, and what is noted goes to index and journal. This daemon then leaves, with `HANDED_OVER`, and its
keeper becomes the keeper of the other luxfuse, which starts the successor. Where requests did not come to rest in time, the
kernel sends them to the successor, as it does when a daemon dies.

While this daemon leaves, it answers nobody. So whatever fails there lets it go on, and if that fails, too, or all takes too
long, it kills itself: then its keeper starts it again. It does not leave while a thread waits for a disk, for a process
ends only once none of its threads does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence

import msgspec
import trio

from luxfuse.config import Settings
from luxfuse.daemon.running import Running
from luxfuse.daemon.succession import Succession
from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.threads import uninterruptible
from luxfuse.keeper import HANDED_OVER, saying
from luxfuse.steps import reached

log = logging.getLogger(__name__)

TRIAL_S = 30.0
FLUSH_S = 10.0
LEAVE_S = 30.0
"""After that a daemon that is still leaving is killed."""
DISK_S = 2.0
"""For how long a thread may wait for a disk."""
POLL_S = 0.05
_SAID_MOST = 300


class Upgrades:
    """The orders to hand over one mount."""

    def __init__(self, running: Running, nursery: trio.Nursery) -> None:
        """``nursery``: of the mount, for what may outlive an order."""
        self._running = running
        self._nursery = nursery
        self._under_way = False

    async def hand_over(self, daemon: Sequence[str], keeper: Sequence[str]) -> AsyncGenerator[dict[str, object], None]:
        """Try the commands of a daemon and its keeper, and leave to them; yields what comes next. Raises `MountError`."""
        succession = self._running.succession
        where = self._running.settings.mountpoint
        if succession is None or not succession.kept:
            raise MountError(_no_keeper(where))
        if self._under_way:
            raise MountError(f"{where} is being upgraded already")
        self._under_way = True
        try:
            yield {"step": "trying", "done": False}
            await self._try([*keeper, "--try"], b"", None)
            await self._try([*daemon, "--try"], chosen(self._running.settings), succession.estate.fd)
            yield {"step": "leaving", "done": True}
            with trio.CancelScope(shield=True):
                await self._leave(succession, daemon, keeper)
        finally:
            self._under_way = False

    async def _try(self, command: Sequence[str], settings: bytes, estate_fd: int | None) -> None:
        """Run a command that says whether it could go on; raises `MountError` if not."""
        where = self._running.settings.mountpoint
        given = [] if estate_fd is None else ["--estate-fd", str(estate_fd)]
        try:
            with trio.fail_after(TRIAL_S):
                done = await trio.run_process(
                    [*command, *given],
                    stdin=settings,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    cwd="/",
                    pass_fds=[] if estate_fd is None else [estate_fd],
                )
        except trio.TooSlowError:
            raise MountError(
                f"{where}: the luxfuse to go on has not started within {TRIAL_S:g} s; it stays as it is"
            ) from None
        except (OSError, subprocess.SubprocessError) as exc:
            raise MountError(f"{where}: the luxfuse to go on cannot be started: {exc}; it stays as it is") from None
        if why := _refusal(done.returncode, done.stdout, done.stderr):
            raise MountError(f"{where}: {why}; it stays as it is")

    async def _leave(self, succession: Succession, daemon: Sequence[str], keeper: Sequence[str]) -> None:
        """Come to rest, and end this process. Raises `MountError` if the mount goes on here."""
        where = self._running.settings.mountpoint
        with _killed_after(LEAVE_S):
            try:
                rested = await self._come_to_rest(succession)
                reached("upgrade.rested")
                if not (succession.kept and saying.next_is(keeper, daemon)):  # else nobody would go on
                    raise MountError(_no_keeper(where))
            except BaseException as exc:
                self._go_on()
                if isinstance(exc, MountError | OSError):
                    raise MountError(f"{exc}; it stays as it is") from None
                if isinstance(exc, Exception):
                    log.exception("the daemon cannot leave, by a mistake in luxfuse")
                    why = f"a mistake in luxfuse ({type(exc).__name__}) keeps the daemon from leaving; see its log"
                    raise MountError(f"{where}: {why}; it stays as it is") from None
                raise
            reached("upgrade.told")
            try:
                log.info("the daemon leaves for %s%s", daemon[0], "" if rested else "; some requests go to it unanswered")
                succession.estate.hand_over()
                logging.shutdown()
            finally:
                os._exit(HANDED_OVER)

    async def _come_to_rest(self, succession: Succession) -> bool:
        """Returns whether all requests that were read are answered. Raises `MountError`, and others by mistake."""
        rested = await self._running.parts.session.rest()
        where = self._running.settings.mountpoint
        if mounts.is_gone(succession.device):
            raise MountError(f"{where}: the mount was taken away meanwhile")
        await self._flush()
        await _insist_on_disks(where)
        return rested

    def _go_on(self) -> None:
        """Serve again, or die of it: the keeper then starts another daemon of this luxfuse."""
        try:
            self._running.parts.session.go_on()
        except BaseException:
            log.critical("the daemon cannot go on after it was to leave, and ends", exc_info=True)
            os._exit(1)

    async def _flush(self) -> None:
        """Bring what is noted to the disk: what fails there is in the estate all the same. Raises `MountError`."""
        ended = trio.Event()
        failures: list[Exception] = []

        async def flush() -> None:
            try:
                for _, parts in self._running.volumes():
                    with contextlib.suppress(OSError):
                        await parts.journal.commit()
                    await parts.index.flush()
            except Exception as exc:  # noqa: BLE001 (it is raised where it is waited for)
                failures.append(exc)
            finally:
                ended.set()

        self._nursery.start_soon(flush)  # a thread of it may wait for a disk for ever
        with trio.move_on_after(FLUSH_S):
            await ended.wait()
        if not ended.is_set():
            raise MountError(_hung(self._running.settings.mountpoint, FLUSH_S))
        if failures:
            raise failures[0]


@contextlib.contextmanager
def _killed_after(seconds: float) -> Iterator[None]:
    """Kill this process if the block takes longer, whatever its threads do. Raises `MountError`."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError as exc:
        raise MountError(f"{exc}; it stays as it is") from None
    try:
        yield
    finally:
        timer.cancel()


async def _insist_on_disks(where: str) -> None:
    """Raise `MountError` if a thread of this process waits for a disk all the while."""
    waiting = uninterruptible()
    with trio.move_on_after(DISK_S):
        while waiting:
            await trio.sleep(POLL_S)
            waiting &= uninterruptible()
    if waiting:
        raise MountError(_hung(where, DISK_S))


def _no_keeper(where: str) -> str:
    return f"{where} has no keeper, which a mount must have to be upgraded; unmount and mount it again"


def _hung(where: str, seconds: float) -> str:
    return f"{where}: a disk of the state or the cache does not answer within {seconds:g} s; try again"


def chosen(settings: Settings) -> bytes:
    """Return as JSON the settings that are not at their defaults: those that are another luxfuse need not know."""
    values = msgspec.to_builtins(settings)
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(Settings)}
    return msgspec.json.encode({name: v for name, v in values.items() if v != _builtin(defaults[name])})


def _builtin(value: object) -> object:
    return None if value is msgspec.NODEFAULT else msgspec.to_builtins(value)


def _refusal(code: int, out: bytes, err: bytes) -> str | None:
    """Return why a trial failed, None if it did not."""
    if code == 0 and not out:
        return None
    with contextlib.suppress(msgspec.MsgspecError):
        answer = msgspec.json.decode(out, type=dict[str, str | None])
        if code == 0 and "error" in answer:
            return answer["error"]
    lines = err.decode(errors="replace").strip().splitlines()
    said = lines[-1][:_SAID_MOST] if lines else "it says nothing"
    return f"the luxfuse to go on ends as it starts, with exit code {code}: {said}"
