"""Objects that somebody else has written under keys that are to be removed: they stay.

Where a delete is made as soon as it is asked for, it is not worth a question: what is known here is fresh. One that had to
wait for the store, or for a restart, may meet what others have made meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import trio

from luxfuse.cache.together import together
from luxfuse.errors import NotFound
from luxfuse.index.journal import DeleteRecord
from luxfuse.types import ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import parse_attributes

CONCURRENT_HEADS = 16


async def of_others(store: Store, deletes: Mapping[str, DeleteRecord]) -> set[str]:
    """Return the keys under which there is not what was to be removed. Raises `StoreError`.

    Left out are keys of directories, and those of which nothing is known to compare.
    """
    replaced: set[str] = set()
    limiter = trio.CapacityLimiter(CONCURRENT_HEADS)

    async def ask(key: str, record: DeleteRecord) -> None:
        async with limiter:
            with contextlib.suppress(NotFound):
                if not _is_meant(await store.head(key), record, store.abilities.metadata):
                    replaced.add(key)

    async with together() as start:
        for key, record in deletes.items():
            if not key.endswith("/") and (record.version or record.sent):
                start(ask, key, record)
    return replaced


def _is_meant(info: ObjectInfo, record: DeleteRecord, described: bool) -> bool:
    """Whether an object is the one that was to be removed; ``described``: the store keeps metadata.

    What was sent before its file was complete says no time of it.
    """
    if record.version or (record.was and info.version == record.was):
        return info.version in (record.version, record.was)
    of_size = [mtime_ns for mtime_ns, size in record.sent if size == info.size]
    if not described:
        return bool(of_size)
    said = parse_attributes(info.metadata)
    if said is None or said.mtime_ns is None:
        return said is not None and said.mode is not None and bool(of_size)
    return said.mtime_ns in of_size
