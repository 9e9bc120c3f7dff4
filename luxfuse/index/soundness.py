"""Opens an index that can be believed: one that is damaged is set aside, and a new one takes its place.

An index describes a cache, so it comes back from the under-store. LMDB has no checksums: it is found out that a page is
not what was written when LMDB stumbles over it, or a record cannot be decoded. So the first records of each table are read
at each start, and all of them once the machine has gone down with the index in use, when a disk may have lost writes that
it had said it had. Damage that shows later is noted (`IndexStore.doubt`), and the next start sets the index aside.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import lmdb
import msgspec
import trio

from luxfuse.durable import sync_directory
from luxfuse.errors import IndexDamaged
from luxfuse.estate.trail import Stream
from luxfuse.index import lifecycle
from luxfuse.index.entries import decode_entry, decode_listing
from luxfuse.index.object_records import decode_record
from luxfuse.index.store import DOUBTED, IndexStore
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import Table

log = logging.getLogger(__name__)

LOOKED_AT = 1000
"""Records of each table that are read at each start: some milliseconds in all."""
ASIDE = ".damaged"
_DECODED: dict[Table, Callable[[bytes], object]] = {
    Table.NAMES: decode_entry,
    Table.LISTINGS: decode_listing,
    Table.OBJECTS: decode_record,
}
_LENGTHS = {Table.NAMES: 8, Table.INODES: 8, Table.LISTINGS: 8, Table.OBJECTS: 16}
"""The least bytes of a key."""


async def open_index(path: Path, note: Callable[[str], None], stream: Stream | None = None) -> IndexStore:
    """Open or create the index in directory ``path``; a damaged one is set aside, of which ``note`` is told.

    ``stream``: its part of the trail. Raises OSError, and `IndexFormatError` where the version is unknown, or the disk does
    not let us.
    """
    try:
        return await _opened(path, stream)
    except IndexDamaged as exc:
        aside = await trio.to_thread.run_sync(_set_aside, path)
        log.warning("%s; it is set aside as %s, and the cache begins anew", exc, aside)
        note(f"{exc}; it is set aside as {aside.name}, and the cache is cold")
    return await _opened(path, stream)


async def _opened(path: Path, stream: Stream | None) -> IndexStore:
    if (path / DOUBTED).exists():
        raise IndexDamaged(f"index {path} is damaged, as was seen when it was last used")
    store = IndexStore(path, stream)
    try:
        await store.view(partial(examine, thorough=lifecycle.was_cut_short(store)))
    except (lmdb.Error, ValueError) as exc:
        store.abandon()
        raise IndexDamaged(f"index {path} is damaged ({exc})") from exc
    except BaseException:
        store.abandon()
        raise
    return store


def examine(txn: Transaction, *, thorough: bool) -> None:
    """Read records of each table, all of them if ``thorough``. Raises ValueError or lmdb.Error if one is damaged."""
    for table in Table:
        decode, least = _DECODED.get(table), _LENGTHS.get(table, 1)
        for key, value in islice(txn.items(table, b""), None if thorough else LOOKED_AT):
            if len(key) < least:
                raise ValueError(f"a key of {table.name.lower()} has {len(key)} bytes")
            if decode is not None:
                try:
                    decode(value)
                except msgspec.DecodeError as exc:
                    raise ValueError(f"a record of {table.name.lower()} cannot be read: {exc}") from exc


def _set_aside(path: Path) -> Path:
    """Give an index another name, and remove the one that had it. Blocks. Raises OSError."""
    aside = path.with_name(path.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    sync_directory(path.parent)
    return aside
