"""The descriptions of a file by fsspec's file systems, each in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luxfuse.types import ObjectInfo
from luxfuse.understore.times import to_ns

_ETAGS = ("ETag", "etag", "e_tag")
_MTIMES = ("mtime", "LastModified", "last_modified", "modified", "modify", "updated", "Last-Modified", "created")


def describe(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    """Return the `ObjectInfo` of a file; its version is made of size and time where the store has no other."""
    size = info.get("size") or 0
    mtime_ns = next((to_ns(info[name]) for name in _MTIMES if info.get(name)), 0)
    etag = next((str(info[name]) for name in _ETAGS if info.get(name)), None)
    return ObjectInfo(key, size, etag or version_of(size, mtime_ns), mtime_ns)


def version_of(size: int, mtime_ns: int) -> str:
    """Return a stand-in for the version where the store has none."""
    return f"{size}-{mtime_ns}"


def info_of(filesystem: Any, path: str) -> dict[str, Any] | None:
    """Return the description of what is at a path; None if there is nothing.

    Unlike fsspec's ``isdir`` and ``exists``, it does not take a connection that failed for a no.
    """
    try:
        info: dict[str, Any] = filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info


def kind_of(filesystem: Any, path: str) -> str | None:
    """Return "file", "directory" or another kind; None if there is nothing."""
    info = info_of(filesystem, path)
    return None if info is None else str(info["type"])
