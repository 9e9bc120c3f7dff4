"""The LMDB environment of the journal: synchronous, so that a committed change is on the platter."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from luxfuse.durable import make_private, sync_directory
from luxfuse.errors import IndexFormatError
from luxfuse.estate.trail import Stream
from luxfuse.index.growth import Growth
from luxfuse.index.records import encode
from luxfuse.index.uncommitted import U64

FORMAT_VERSION = 1
MAP_BYTES = 1 << 36
"""Address space only; the file grows with what is in it."""


class Table(IntEnum):
    """The named databases. Keys and values are described in `journal`."""

    META = 0
    FILES = 1
    INLINE = 2
    DELETES = 3
    OPERATIONS = 4
    UPLOADS = 5
    PARTS = 6


Records = dict[tuple[Table, bytes], bytes | None]
"""Values by table and key; None removes a key."""


_decode_change = msgspec.msgpack.Decoder(tuple[Table, bytes, bytes | None]).decode


def inline_bytes(changes: Records) -> int:
    """Return how many bytes of content are among changes."""
    return sum(len(value) for (table, _), value in changes.items() if table is Table.INLINE and value is not None)


class JournalFile:
    """An open environment. ``damaged``: it takes nothing before `reopen`."""

    def __init__(self, path: Path, stream: Stream | None = None) -> None:
        """Open or create it in directory ``path``; ``stream``: its part of the trail. Raises `IndexFormatError`."""
        self.path = path
        self._stream = stream
        self.damaged = False
        self._growth = Growth(path)
        self._using = threading.Lock()
        """Held by what changes the file or closes it: a commit may run on when the journal's owner ends."""
        self._env: Any = None
        try:
            self._open()
            version = self.get(Table.META, b"format")
            if version is None:
                self.commit({(Table.META, b"format"): U64.pack(FORMAT_VERSION)})
        except (lmdb.Error, OSError) as exc:
            self.close()
            raise self.unusable(str(exc)) from exc
        if version not in (None, U64.pack(FORMAT_VERSION)):
            self.close()
            raise IndexFormatError(
                f"journal {path} has format {int.from_bytes(version or b'', 'big')}, this luxfuse knows {FORMAT_VERSION}; "
                "use the luxfuse that wrote it: it may hold what was not uploaded yet"
            )

    def unusable(self, why: str) -> IndexFormatError:
        """Return the error that says so."""
        return IndexFormatError(
            f"journal {self.path} cannot be used ({why}); it may hold what was not uploaded yet: move it away to go on"
        )

    def _open(self) -> None:
        new = not (self.path / "data.mdb").exists()
        make_private(self.path)
        self._env = lmdb.open(
            str(self.path), map_size=MAP_BYTES, max_dbs=len(Table), sync=True, metasync=True, mode=0o600, readahead=False
        )
        self._env.reader_check()
        self._databases = {table: self._env.open_db(table.name.lower().encode()) for table in Table}
        if new:
            for directory in (self.path, self.path.parent):
                sync_directory(directory)

    def reopen(self) -> None:
        """Open it again after LMDB has given it up. Raises OSError; call it in the thread that reads."""
        self.close()
        try:
            self._open()
        except lmdb.Error as exc:
            raise self._error(exc) from exc
        self.damaged = False

    # -- what outlives the daemon before it is committed

    def take_up(self) -> None:
        """Commit what the daemon before this one had not committed. Raises OSError."""
        if self._stream is None:
            return
        mark = self._stream.mark()
        records: Records = {}
        for _, payload in self._stream.left():
            table, key, value = _decode_change(payload)
            records[table, key] = value
        if records:
            self.commit(records)
        self._stream.written(mark)

    def outlive(self, table: Table, key: bytes, value: bytes | None) -> None:
        """A change is made that is committed later."""
        if self._stream is not None:
            self._stream.append(encode((table, key, value)))

    def mark(self) -> int:
        """A commit begins with all such changes; returns what `written` is to be told."""
        return self._stream.mark() if self._stream is not None else 0

    def written(self, mark: int) -> None:
        """They are committed."""
        if self._stream is not None:
            self._stream.written(mark)

    # -- what is committed

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return a committed value. Raises OSError."""
        try:
            with self._env.begin(db=self._databases[table], buffers=False) as txn:
                value: bytes | None = txn.get(key)
                return value
        except lmdb.Error as exc:
            raise self._error(exc) from exc

    def records(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        """Yield all committed (key, value) of a table. Raises OSError."""
        try:
            with self._env.begin(buffers=False) as txn, txn.cursor(db=self._databases[table]) as cursor:
                yield from cursor.iternext(keys=True, values=True)
        except lmdb.Error as exc:
            raise self._error(exc) from exc

    def commit(self, records: Records) -> None:
        """Make changes durable in one transaction. Raises OSError with none of them made, as far as can be told."""
        try:
            with self._using:
                self._commit(records)
        except lmdb.Error as exc:
            raise self._error(exc) from exc

    def _commit(self, records: Records) -> None:
        self._growth.ahead(self._env)
        with self._env.begin(write=True) as txn:
            for (table, key), value in records.items():
                if value is None:
                    txn.delete(key, db=self._databases[table])
                else:
                    txn.put(key, value, db=self._databases[table])

    def _error(self, exc: lmdb.Error) -> OSError:
        self.damaged = self.damaged or isinstance(exc, lmdb.PanicError)
        code = getattr(exc, "code", None)
        number = errno.ENOSPC if isinstance(exc, lmdb.MapFullError) else errno.EIO
        return OSError(code if isinstance(code, int) and code > 0 else number, f"journal {self.path}: {exc}")

    def close(self) -> None:
        """Close it."""
        with self._using:
            if self._env is not None:
                self._env.close()
