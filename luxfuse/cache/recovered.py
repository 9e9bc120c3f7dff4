"""Files that nobody asked to lose: kept aside for the operator, outside of the mount.

Here come the other version of a write conflict, and files that were open for writing when the daemon was killed.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import time
import urllib.parse
from pathlib import Path

import trio

from luxfuse.durable import replace_file, sync_directory
from luxfuse.tiers.staging import Staging
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store

log = logging.getLogger(__name__)

COPY_BYTES = 8 << 20
NAME_BYTES = 180
PART = ".part"


class Recovered:
    """The directory of recovered files of one source."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._numbers = itertools.count(1)

    def count(self) -> int:
        """Return how many files there are."""
        try:
            return sum(1 for entry in self.directory.iterdir() if entry.is_file() and not entry.name.startswith("."))
        except FileNotFoundError:
            return 0

    def _target(self, key: str) -> Path:
        """Return a new path that names the key and the time."""
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self.directory.parent)
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        quoted = urllib.parse.quote(key, safe=" ")[-NAME_BYTES:]
        if quoted.startswith("."):  # names that begin with a dot are ours
            quoted = f"%2E{quoted[1:]}"
        while True:
            path = self.directory / f"{quoted}.{moment}.{next(self._numbers)}"
            if not path.exists():
                return path

    async def save_object(self, store: Store, info: ObjectInfo, key: str | None = None) -> Path:
        """Keep a version of an object, durably; ``key``: that it was to have, if not its own.

        Raises `StoreError`, OSError, and leaves nothing then.
        """
        target = await trio.to_thread.run_sync(self._target, info.key if key is None else key)
        part = target.with_name(f".{target.name}{PART}")
        try:
            async with await trio.open_file(part, "xb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # as long as it is being written
                for start in range(0, info.size, COPY_BYTES):
                    end = min(start + COPY_BYTES, info.size)
                    await file.write(await store.read(info.key, start, end, info.version))
                await file.flush()
                await trio.to_thread.run_sync(os.fsync, file.fileno())
            await trio.to_thread.run_sync(_give_name, part, target)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_clear, part, target)
            raise
        return target

    def remove_unfinished(self) -> None:
        """Remove what a daemon that was killed had begun to save here: the store has it yet. Blocks."""
        for path in self.directory.glob(f".*{PART}"):
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            except BlockingIOError:
                continue  # another daemon of the source is at it
            except OSError as exc:
                log.info("%s stays behind: %s", path, exc)

    def keep_file(self, path: Path, key: str) -> Path:
        """Move the file of a replica here, durably; both are in the state directory. Blocks. Raises OSError."""
        target = self._target(key)
        path.rename(target)
        for directory in (target.parent, path.parent):
            sync_directory(directory)
        return target

    def keep_bytes(self, data: bytes, key: str) -> Path:
        """Keep a small content, durably. Blocks. Raises OSError."""
        target = self._target(key)
        replace_file(target, data)
        sync_directory(target.parent)
        return target

    def keep_staging(self, staging: Staging, number: int, key: str) -> Path:
        """Move a staging file here. Blocks. Raises OSError."""
        return staging.recover(number, self._target(key))


def _give_name(part: Path, target: Path) -> None:
    part.rename(target)
    sync_directory(target.parent)


def _clear(*paths: Path) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:  # what went wrong before is raised
            log.info("%s stays behind: %s", path, exc)
