"""A copy of the journal beside the staging files, so that these can be told what they are for without the state directory.

The journal is synced, in a place of its own, and is believed; the copy is for a state directory that is lost or damaged (a
container's that was not kept, say). Each commit appends a frame to the file after the journal has it and before those that
wait for it are told: so the copy has what was acknowledged, unless the machine goes down at once, too: it is not synced.

`<cache directory>/journal.copy`: `MAGIC`, number of the *opening* (8 bytes), then frames: length and CRC-32 of the rest (4
bytes each), and a list of (table, key, value), msgpack; value nil: the key is gone. A frame that is cut short is the last.
Each opening of the journal gets a higher number, in both: of a journal and a copy the one with the higher one was used
last. Small contents (INLINE) are in it up to `INLINE_BYTES`, as symlinks have no staging file; others are in theirs.

When the file has grown to `REWRITE_FACTOR` times what it was when it was last written as a whole, it is written anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from luxfuse.errors import IndexFormatError

log = logging.getLogger(__name__)

FILE_NAME = "journal.copy"
MAGIC = b"luxfuse journal copy 2\n"
"""With the version of the journal's records (`journal_file.FORMAT_VERSION`)."""
ANY_MAGIC = MAGIC.partition(b"2")[0]
INLINE_BYTES = 4096
"""The most that a symlink's target has (PATH_MAX)."""
REWRITE_FACTOR = 4
LEAST_BYTES = 1 << 20
"""A smaller file is not written anew."""
FRAME_RECORDS = 1000
"""Records of one frame, where the file is written as a whole."""
_OPENING = struct.Struct(">Q")
_HEAD = struct.Struct(">II")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, bytes, bytes | None]]).decode

Record = tuple[int, bytes, bytes | None]
"""Number of the table, key, and value, None if it is gone."""


@dataclass(frozen=True, slots=True)
class Found:
    """The content of a copy; ``records``: values by (number of the table, key)."""

    opening: int
    records: dict[tuple[int, bytes], bytes]


class JournalCopy:
    """The copy in one cache directory. Every method blocks; errors of the disk are logged, and end nothing."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._fd = -1
        self._size = self._whole_size = 0
        self._opening = 0
        self._failing = False

    def read(self) -> Found | None:
        """Return what an earlier run left here; None if there is nothing that can be read.

        Raises `IndexFormatError` for a copy of another version.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            log.warning("the copy of the journal, %s, cannot be read: %s", self.path, exc.strerror)
            return None
        start = len(MAGIC) + _OPENING.size
        if data.startswith(ANY_MAGIC) and not data.startswith(MAGIC):
            raise IndexFormatError(
                f"the copy of the journal, {self.path}, is of another version: use the luxfuse that wrote it, as it may "
                "tell what was not uploaded yet, or move it away"
            )
        if not data.startswith(MAGIC) or len(data) < start:
            return None
        found = Found(_OPENING.unpack_from(data, len(MAGIC))[0], {})
        while (frame := _frame_at(data, start)) is not None:
            for table, key, value in _decode(frame):
                if value is None:
                    found.records.pop((table, key), None)
                else:
                    found.records[table, key] = value
            start += _HEAD.size + len(frame)
        return found

    def begin(self, opening: int, everything: Callable[[], Iterable[Record]]) -> None:
        """Write it as a whole, and append to it from now on."""
        self._opening = opening
        self._guarded(lambda: self._rewrite(everything))

    def append(self, records: Iterable[Record], everything: Callable[[], Iterable[Record]]) -> None:
        """Add a commit. Where the file is lost, failed before, or is too long, ``everything`` is written instead."""
        self._guarded(lambda: self._append(records, everything))

    def _append(self, records: Iterable[Record], everything: Callable[[], Iterable[Record]]) -> None:
        most = max(LEAST_BYTES, REWRITE_FACTOR * self._whole_size)
        if self._fd < 0 or self._size > most or not os.fstat(self._fd).st_nlink:
            self._rewrite(everything)
        else:
            self._size += _write(self._fd, _frame(records))

    def _rewrite(self, everything: Callable[[], Iterable[Record]]) -> None:
        self.close()
        fresh = self.path.with_name(f"{FILE_NAME}.new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = _write(fd, MAGIC + _OPENING.pack(self._opening))
            batch: list[Record] = []
            for record in everything():
                batch.append(record)
                if len(batch) >= FRAME_RECORDS:
                    size += _write(fd, _frame(batch))
                    batch.clear()
            size += _write(fd, _frame(batch))
            fresh.rename(self.path)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size, self._whole_size = fd, size, size

    def _guarded(self, write: Callable[[], None]) -> None:
        """What was not written must not be missed later: a copy that lacks something is emptied."""
        try:
            write()
        except OSError as exc:
            if not self._failing:
                log.warning("the copy of the journal, %s, cannot be written: %s", self.path, exc.strerror)
            self._failing = True
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self.path, 0)
        else:
            if self._failing:
                log.info("the copy of the journal, %s, is written again", self.path)
            self._failing = False

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _frame(records: Iterable[Record]) -> bytes:
    body = _encode(list(records))
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def _frame_at(data: bytes, start: int) -> bytes | None:
    """Return the body of the frame that begins at ``start``; None if there is none, or not all of it.

    Zeros are none, which a power cut may leave behind the last one: their checksum would be right.
    """
    if len(data) < start + _HEAD.size:
        return None
    length, crc = _HEAD.unpack_from(data, start)
    if not length:
        return None
    body = data[start + _HEAD.size : start + _HEAD.size + length]
    return body if len(body) == length and zlib.crc32(body) == crc else None


def _write(fd: int, data: bytes) -> int:
    """Write all of ``data`` at the end; returns its bytes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)
