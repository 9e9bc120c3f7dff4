"""Hands a mount over to another luxfuse, on order, while programs use it.

The other one is tried first, beside this daemon (`daemon.trial`). Only then requests come to rest: no more are read, those
under way are answered, and what is noted goes to index and journal. This daemon then leaves, with `HANDED_OVER`, and its
keeper becomes the keeper of the other luxfuse, which starts the successor. Where requests did not come to rest in time, the
kernel sends them to the successor, as it does when a daemon dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import AsyncGenerator, Sequence

import msgspec
import trio

from luxfuse.config import Settings
from luxfuse.daemon.running import Running
from luxfuse.daemon.succession import Succession
from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.keeper import HANDED_OVER, saying

log = logging.getLogger(__name__)

TRIAL_S = 30.0
FLUSH_S = 10.0
_SAID_MOST = 300


class Upgrades:
    """The orders to hand over one mount."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._under_way = False

    async def hand_over(self, daemon: Sequence[str], keeper: Sequence[str]) -> AsyncGenerator[dict[str, object], None]:
        """Try the commands of a daemon and its keeper, and leave to them; yields what comes next. Raises `MountError`."""
        succession = self._running.succession
        where = self._running.settings.mountpoint
        if succession is None or not succession.kept:
            raise MountError(f"{where} has no keeper, which a mount must have to be upgraded; unmount and mount it again")
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
        session = self._running.parts.session
        try:
            rested = await session.rest()
            if mounts.is_gone(succession.device):
                raise MountError(f"{self._running.settings.mountpoint}: the mount was taken away meanwhile")
            await self._flush()
            saying.next_is(keeper, daemon)
        except (MountError, OSError) as exc:
            session.go_on()
            raise MountError(f"{exc}; it stays as it is") from None
        log.info("the daemon leaves for %s%s", daemon[0], "" if rested else "; some requests go to it unanswered")
        succession.estate.hand_over()
        logging.shutdown()
        os._exit(HANDED_OVER)

    async def _flush(self) -> None:
        """Bring what is noted to the disk: what cannot be brought there now is in the estate all the same."""
        with trio.move_on_after(FLUSH_S), contextlib.suppress(OSError):
            for _, parts in self._running.volumes():
                await parts.journal.commit()
                await parts.index.flush()


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
