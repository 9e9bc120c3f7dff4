"""An attached under-store leaves: all changes in it have gone to its store, nobody uses it, and it falls silent.

``where``: its attach point, for what users are told.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio

from luxfuse.errors import MountError
from luxfuse.fuse import mountpoint as mounts
from luxfuse.orders.backlog import Backlog, Progress
from luxfuse.vfs.volumes import Volume
from luxfuse.volume.parts import VolumeParts

log = logging.getLogger(__name__)

STALLED_S = 60.0
"""After so long without progress a detach gives up to bring what is left to the store."""
IDLE_PATIENCE_S = 5.0
"""For how long a detach waits for requests that are under way before it says that somebody uses the volume."""
FORCE_PATIENCE_S = 5.0
POLL_S = 0.02


async def bring_up(backlog: Backlog, where: str) -> AsyncGenerator[Progress, None]:
    """Drain what was written; yields how far that is. Raises `MountError` where it does not go on."""
    async with aclosing(backlog.drain()) as steps:
        async for step in steps:
            if step.stalled_s > STALLED_S:
                raise MountError(
                    f"{where}: {step.files} files and {step.deletes} deletes are still not in the "
                    f"under-store, without progress for {STALLED_S:g} s ({step.error}); it stays attached: try again, "
                    f"or leave them to its next attach with: luxfuse detach --force {where}"
                )
            if not step.done:
                yield step


async def insist_on_idle(volume: Volume, where: str) -> None:
    """Raise `MountError` if anybody uses the volume. If not, that holds until the next wait."""
    users = await trio.to_thread.run_sync(mounts.holders, where)
    give_up_at = trio.current_time() + IDLE_PATIENCE_S
    while users or volume.in_use:
        if users or trio.current_time() > give_up_at:
            shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
            raise MountError(
                f"{where} is busy: in use{f' by {shown}' if users else ''}; end them first, or use: "
                f"luxfuse detach --force {where}"
            )
        await trio.sleep(POLL_S)


async def let_end(volume: Volume) -> None:
    """Wait for requests that are under way, but not for long."""
    with trio.move_on_after(FORCE_PATIENCE_S):
        while volume.under_way:  # noqa: ASYNC110 (an event would cost every request something)
            await trio.sleep(POLL_S)


async def commit(parts: VolumeParts) -> None:
    """Have on disk what a daemon that dies now would leave to its successor: none looks for it any more."""
    try:
        await parts.index.flush()
        await parts.journal.commit()
    except OSError as exc:
        log.info("what is left cannot be committed: %s", exc)  # the end of the volume says so, too


async def fall_silent(parts: VolumeParts, request_timeout_s: float) -> None:
    """Let what is under way end: an answer must find the volume that it is for."""
    parts.loads.stop()
    parts.schedules.stop()
    parts.cache.close()
    with trio.move_on_after(request_timeout_s + FORCE_PATIENCE_S):
        while not parts.store.idle or parts.cache.attempts.asking_peers:  # noqa: ASYNC110 (it counts threads that are abandoned, too)
            await trio.sleep(POLL_S)
