"""Whether the store got a file of the journal: the last run ended before the journal said so."""

from __future__ import annotations

from luxfuse.errors import AccessDenied, NotFound, StoreError, StoreUnavailable
from luxfuse.index.journal import FileRecord
from luxfuse.understore.retrying import Store
from luxfuse.vfs.attributes import parse_attributes


async def has_other(store: Store, record: FileRecord) -> bool:
    """Whether the store has another object than expected: it got the file before the journal said that it is closed."""
    if record.expect is None:
        return False  # it is found out and noted before the upload
    try:
        return (await store.head(record.key)).version != record.expect
    except NotFound:
        return False


async def was_pushed(store: Store, record: FileRecord) -> bool:
    """Whether content that is not here any more went to the store: the last run ended before the journal said so.

    Raises `StoreUnavailable` or `AccessDenied` while that cannot be told.
    """
    try:
        info = await store.head(record.key)
    except (StoreUnavailable, AccessDenied):
        raise
    except StoreError:
        return False
    sent = {(record.stamp, record.size)}
    if record.sending is not None and record.sending[0] >= record.stamp:
        sent.add(record.sending)  # else it was an earlier content that was being sent when this one was promised
    said = parse_attributes(info.metadata)
    if said is not None and said.mtime_ns is not None:
        return (said.mtime_ns, info.size) in sent  # of the same content as before it has the same version
    # What was sent before its file was complete says no time of it.
    ours = said is not None and said.mode is not None if store.abilities.metadata else True
    return ours and info.size in {size for _, size in sent} and info.version != record.expect
