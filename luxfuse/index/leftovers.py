"""Unsaved changes in the journals of this machine, looked at without using these.

Beside each journal lies ``origin.json``, which says what it belongs to, so that commands and other mounts can tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec

from luxfuse.core.units import format_count, format_size
from luxfuse.durable import replace_file
from luxfuse.index import journal_log
from luxfuse.index.journal_file import FORMAT_VERSION, GENERATION, LOGLESS_VERSION, Table, over
from luxfuse.index.records import FileRecord
from luxfuse.index.uncommitted import U64
from luxfuse.types import Kind, WriteMode

ORIGIN = "origin.json"
T = TypeVar("T", bound=IntEnum)


class OtherVersion(OSError):
    """A journal of another luxfuse."""

    def __init__(self, found: int) -> None:
        super().__init__(f"a journal of another version, {found}")
        self.found = found


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a journal is. ``cache`` is the directory with the staging files."""

    mountpoint: str
    source: str
    source_id: str
    cache: str


class Leftovers(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that are not in the under-store.

    ``bytes`` are those of ``files``; ``unclosed``: files that were being written, which do not count in ``files``;
    ``moves`` are renames that were cut short.
    """

    origin: Origin
    files: int = 0
    bytes: int = 0
    unclosed: int = 0
    deletes: int = 0
    moves: int = 0

    @property
    def any(self) -> bool:
        """Whether there is anything."""
        return bool(self.files or self.unclosed or self.deletes or self.moves)

    @property
    def text(self) -> str:
        """All of it in words."""
        parts = []
        if self.files:
            parts.append(f"{format_count(self.files, 'changed file')} ({format_size(self.bytes)})")
        others = {"unclosed file": self.unclosed, "delete": self.deletes, "unfinished rename": self.moves}
        return ", ".join(parts + [format_count(count, what) for what, count in others.items() if count])


def write_origin(journal: Path, origin: Origin) -> None:
    """Say whose a journal is. Raises OSError."""
    path = journal / ORIGIN
    encoded = msgspec.json.encode(origin)
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == encoded:
            return
    replace_file(path, encoded)


def find(journals: Path) -> Iterator[Leftovers]:
    """Yield the rest in each journal below a directory that nobody uses; those that cannot be read are left out."""
    try:
        paths = sorted(journals.iterdir())
    except OSError:
        return
    for path in paths:
        try:
            origin = msgspec.json.decode((path / ORIGIN).read_bytes(), type=Origin)
            if not _is_locked(Path(origin.cache)):
                yield read(path, origin)
        except (OSError, msgspec.MsgspecError, lmdb.Error):
            continue


def in_use(state_dir: Path, name: str) -> bool:
    """Whether a daemon uses the journal of that name, and so the index."""
    try:
        origin = msgspec.json.decode((state_dir / "journal" / name / ORIGIN).read_bytes(), type=Origin)
        return _is_locked(Path(origin.cache))
    except (OSError, msgspec.MsgspecError):
        return False


def _is_locked(cache: Path) -> bool:
    """Whether a daemon holds the cache directory. To try its lock would get in the way of a daemon that starts."""
    try:
        inode = (cache / "lock").stat().st_ino
    except FileNotFoundError:
        return False
    locks = Path("/proc/locks").read_text().splitlines()
    return any(" FLOCK " in line and f":{inode} " in line for line in locks)


@contextlib.contextmanager
def looking(path: Path, tables: type[T]) -> Iterator[tuple[Any, dict[T, Any]]]:
    """Read an index or a journal without using it: the transaction, and its databases. Raises LMDB's errors."""
    with lmdb.open(str(path), readonly=True, lock=False, max_dbs=len(tables), create=False) as env:
        databases = {table: env.open_db(table.name.lower().encode(), create=False) for table in tables}
        with env.begin() as txn:
            yield txn, databases


def read(path: Path, origin: Origin) -> Leftovers:
    """Return the rest in a journal. Raises `OtherVersion`, OSError, msgspec's and LMDB's errors if it cannot be read."""
    decode = msgspec.msgpack.Decoder(FileRecord).decode
    files = size = unclosed = 0
    with looking(path, Table) as (txn, databases):
        version = txn.get(b"format", db=databases[Table.META])
        if version not in (U64.pack(LOGLESS_VERSION), U64.pack(FORMAT_VERSION)):
            raise OtherVersion(int.from_bytes(version or b"", "big"))
        generation = txn.get(GENERATION, db=databases[Table.META])
        logged = journal_log.found(path, generation).records if generation is not None else {}
        for _, value in over(txn.cursor(db=databases[Table.FILES]), logged, Table.FILES):
            record = decode(value)
            if record.mode is WriteMode.MUST_CACHE or record.kind is Kind.SPECIAL:
                continue
            if record.closed:
                files, size = files + 1, size + record.size
            elif record.size:
                unclosed += 1
        deletes, moves = (
            sum(1 for _ in over(txn.cursor(db=databases[table]), logged, table))
            for table in (Table.DELETES, Table.OPERATIONS)
        )
    return Leftovers(origin=origin, files=files, bytes=size, unclosed=unclosed, deletes=deletes, moves=moves)
