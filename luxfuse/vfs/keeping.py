"""Properties that others have set on the object of a file go with each upload in its place.

User metadata, headers, storage class, tags and the like belong to the file as extended attributes do: they stay when it is
changed, move with it, and are gone when it is removed or another file is renamed over it.
"""

from __future__ import annotations

import logging

import trio

from luxfuse.core.replicas import WRITE_METADATA
from luxfuse.errors import AccessDenied, NotFound
from luxfuse.types import Kind
from luxfuse.understore.properties import Properties
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import Dirty

log = logging.getLogger(__name__)

OWN_METADATA = frozenset({"mode", "uid", "gid", "mtime", "atime", "ctime", "xattr", WRITE_METADATA})
"""Written by `attributes.to_metadata` and replication: our present value counts, or none."""

KEPT_S = 60.0
"""While a file stays open, it is not looked at more often."""


def foreign(kept: Properties | None) -> dict[str, str]:
    """Return the user metadata that others have set."""
    metadata = (kept.info.metadata if kept is not None else None) or {}
    return {name: value for name, value in metadata.items() if name not in OWN_METADATA}


async def keep(store: Store, dirty: Dirty) -> Properties | None:
    """Return what others have set on the object that a dirty entry is; None if nothing is there. Raises `StoreError`."""
    now_s = trio.current_time()
    if not store.abilities.metadata or now_s - dirty.stored.kept_s < KEPT_S:
        return dirty.stored.kept
    looked: Properties | None = None
    origin = _origin(dirty)
    if origin is not None:
        key, version = origin
        try:
            found = await store.examine(key)
        except NotFound:
            pass  # the known ones still hold
        except AccessDenied as exc:
            log.info("%r is replaced without a look at what others set on it: %s", key, exc)
        else:
            if key == dirty.key or version in ("", found.info.version):  # else another object has the key now
                looked = found
    dirty.stored.looked_at(now_s, looked)
    return dirty.stored.kept


def _origin(dirty: Dirty) -> tuple[str, str] | None:
    """Return key and version ("" if unknown) of the object that an entry is."""
    if dirty.kind in (Kind.DIRECTORY, Kind.SYMLINK):
        return (dirty.key, "") if dirty.may_be_stored and not dirty.stored.doomed else None
    if dirty.stored.at is not None:
        return dirty.stored.at
    return (dirty.stored.inherits, "") if dirty.stored.inherits else None
