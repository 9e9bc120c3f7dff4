"""The file of the log before the journal's LMDB; `core.journal_log` has its form."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from pathlib import Path

import xxhash

from luxfuse.core import journal_log
from luxfuse.core.journal_log import GENERATION_BYTES, Found, Records
from luxfuse.durable import sync_directory
from luxfuse.steps import reached

log = logging.getLogger(__name__)

NAME = "log"
LOG_BYTES = 4 << 20
"""Some 340 closes of files of 10 KiB, or a thousand of others, between two transactions of LMDB. Also held in memory."""
ROOMY_FACTOR = 16
"""A disk with less room than so many logs is left alone."""


class JournalLog:
    """A log that is appended to. Used by one thread at a time."""

    def __init__(self, path: Path, generation: bytes, end: int = 0) -> None:
        """Open the log in a directory; the next batch of ``generation`` comes at the byte ``end``. Raises OSError.

        A log that was just made has no generation (b"") until `restart`.
        """
        self._path = path / NAME
        self.generation = generation
        self._end = end
        # Each write is on the platter when it returns; as it makes the file no longer, the file system's journal is idle.
        self._fd = os.open(self._path, os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)
        self.bytes = os.fstat(self._fd).st_size

    def append(self, records: Records) -> bool:
        """Make a batch durable; False, and nothing is done, if the log has no room for it.

        Raises OSError: then the batch may be there or not, until another one has been appended, which takes its place.
        """
        batch = journal_log.encode_batch(xxhash.xxh3_64_intdigest, self.generation, self._end, records)
        if self._end + len(batch) > self.bytes:
            return False
        written = os.pwrite(self._fd, batch, self._end)
        if written != len(batch):
            raise OSError(errno.EIO, f"{self._path}: {written} of {len(batch)} bytes were written")
        reached("journal.appended")
        self._end += written
        return True

    def restart(self, generation: bytes) -> None:
        """What is in it counts no more: begin again with a new generation, which the journal knows durably."""
        self.generation = generation
        self._end = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def new_generation() -> bytes:
    """Return one that never was."""
    return secrets.token_bytes(GENERATION_BYTES)


def made(path: Path) -> JournalLog | None:
    """Make the file of a log in a directory, durably; None if it cannot be made, as the disk is full, say. Blocks.

    It is written once, so that appending changes nothing but blocks that are there. `restart` gives it its generation.
    """
    try:
        disk = os.statvfs(path)
        if disk.f_bavail * disk.f_frsize < ROOMY_FACTOR * LOG_BYTES:
            return None
        with os.fdopen(os.open(path / NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(bytes(LOG_BYTES))
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path)
        reached("journal.log_made")
        return JournalLog(path, b"")
    except OSError as exc:
        log.warning("journal %s goes without a log, and so is slower: %s", path, exc)
        with contextlib.suppress(OSError):  # what there is of it takes room, of a quota that is used up, say
            (path / NAME).unlink()
        return None


def found(path: Path, generation: bytes) -> Found:
    """Return what the log in a directory says. Raises OSError, also if it is damaged, or not there."""
    try:
        return journal_log.replay(xxhash.xxh3_64_intdigest, generation, (path / NAME).read_bytes())
    except journal_log.DamagedLog as exc:
        raise OSError(errno.EIO, f"its log is damaged: {exc}") from exc
