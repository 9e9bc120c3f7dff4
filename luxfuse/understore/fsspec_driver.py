"""Any fsspec file system as an under-store.

`FsspecDriver` uses only what every file system has (ls, info, cat_file); the modules beside it add conditional reads,
page-wise listings and exact keys where a store can do better. `open_fsspec` chooses.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from luxfuse.errors import NotFound, StoreRejected, StoreUnavailable, VersionChanged
from luxfuse.types import ListPage, ObjectInfo
from luxfuse.understore.base import Buffer, OnDescribed
from luxfuse.understore.failures import checked
from luxfuse.understore.fsspec_failures import failure
from luxfuse.understore.fsspec_options import open_filesystem, require_root, s3_arguments
from luxfuse.understore.fsspec_writes import ABILITIES, FsspecWrites
from luxfuse.understore.locations import family_of, has_dot_segment
from luxfuse.understore.times import to_ns

PAGE_ENTRIES = 1000

_ETAGS = ("ETag", "etag", "e_tag")
_MTIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified", "created")
_NOT_THREAD_SAFE = ("ftp",)


class FsspecDriver(FsspecWrites):
    """An `UnderStore` on any fsspec file system; reads are checked by asking for the version afterwards."""

    driver = "fsspec"

    def __init__(self, filesystem: Any, root: str, *, family: str = "", request_timeout_s: float = 30.0) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._family = family
        self._timeout_s = request_timeout_s
        # gcsfs has keys, all others that come here have directories.
        self._abilities = dataclasses.replace(ABILITIES, hierarchical=not family)
        protocol = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
        self._guard: AbstractContextManager[Any] = (
            threading.Lock() if protocol in _NOT_THREAD_SAFE else nullcontext()
        )

    def probe(self) -> None:
        for _ in self.list_directory(""):
            return

    def head(self, key: str) -> ObjectInfo:
        what = f"HEAD {key!r}"
        path = self._file_path(key, what)
        try:
            with self._guard:
                info = self._fs.info(path)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family) from None
        if info.get("type") == "directory":
            raise NotFound(f"{what}: is a directory")
        return _describe(key, info)

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        if prefix and has_dot_segment(prefix[:-1]):
            return
        path = self._path(prefix).rstrip("/")
        try:
            with self._guard:
                entries = self._fs.ls(path, detail=True)
        except Exception as exc:  # noqa: BLE001
            error = failure(exc, f"LIST {prefix!r}", self._family, bucket_level=not prefix)
            if prefix and type(error) is NotFound:
                return
            raise error from None
        if len(entries) == 1 and entries[0]["name"].rstrip("/") == path and entries[0].get("type") == "file":
            return  # ls of a file lists the file
        yield from self._pages(prefix, path, entries)

    def _pages(self, prefix: str, path: str, entries: list[dict[str, Any]]) -> Iterator[ListPage]:
        page = ListPage()
        yielded = False
        for entry in entries:
            name = entry["name"].rstrip("/")[len(path) :].lstrip("/")
            if not name or "/" in name:
                continue  # the directory itself
            if entry.get("type") == "link":
                entry = self._follow(prefix + name)  # noqa: PLW2901
            if entry.get("type") == "directory":
                page.prefixes.append(f"{prefix}{name}/")
            elif entry.get("type") == "file":
                page.objects.append(_describe(prefix + name, entry))
            if len(page.objects) + len(page.prefixes) >= PAGE_ENTRIES:
                yield page
                page, yielded = ListPage(), True
        if page.objects or page.prefixes or not yielded:
            yield page

    def _follow(self, key: str) -> dict[str, Any]:
        try:
            with self._guard:
                info: dict[str, Any] = self._fs.info(self._path(key))
            return info
        except FileNotFoundError:
            return {}  # a dangling link
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, f"HEAD {key!r}", self._family) from None

    def has_prefix(self, prefix: str) -> bool:
        return next(self.list_directory(prefix), None) is not None

    def read(
        self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None
    ) -> Buffer:
        what = f"GET {key!r} [{start}, {end})"
        path = self._file_path(key, what)
        try:
            with self._guard:
                data: bytes = self._fs.cat_file(path, start=start, end=end) if start < end else b""
        except Exception as exc:  # noqa: BLE001
            error = failure(exc, what, self._family)
            if isinstance(error, NotFound | StoreUnavailable):
                raise error from None
            self._require_version(key, version, what)
            raise error from None
        self._require_version(key, version, what)
        return checked(data, end - start, version, version, what)

    def _require_version(self, key: str, version: str, what: str) -> None:
        """Raise `VersionChanged` if the store holds another version now, that is, after the bytes were read."""
        if (found := self.head(key).version) != version:
            raise VersionChanged(f"{what}: version is {found}, not {version}")

    def close(self) -> None:
        """Free connections: here they end with the file system object."""
        del self._fs

    def _file_path(self, key: str, what: str) -> str:
        """Return the path of ``key``, which must not lead out of the root."""
        if has_dot_segment(key):
            raise NotFound(f"{what}: no such file")
        return self._path(key)

    def _target(self, key: str, what: str) -> str:
        if not key or has_dot_segment(key.removesuffix("/")):
            raise StoreRejected(f"{what}: no file can have this name")
        return self._path(key.removesuffix("/"))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root or "/"


def open_fsspec(
    source: str,
    *,
    endpoint_url: str | None = None,
    storage_options: Mapping[str, str] | None = None,
    request_timeout_s: float = 30.0,
) -> FsspecDriver:
    """Open the best driver on fsspec for ``source``. Raises `ConfigError`, or `StoreError` if connecting fails."""
    require_root(source)
    filesystem, root = open_filesystem(source, endpoint_url, storage_options or {}, request_timeout_s)
    family = family_of(source) or ""
    if family == "s3":
        from luxfuse.understore.fsspec_s3 import S3Driver

        arguments = s3_arguments(storage_options or {}, endpoint_url, request_timeout_s)
        return S3Driver(filesystem, root, arguments, request_timeout_s=request_timeout_s)
    if family == "az":
        from luxfuse.understore.fsspec_azure import AzureDriver

        return AzureDriver(filesystem, root, family=family, request_timeout_s=request_timeout_s)
    if source.startswith(("http://", "https://")):
        from luxfuse.understore.fsspec_http import HttpDriver

        return HttpDriver(filesystem, root, request_timeout_s=request_timeout_s)
    if type(filesystem).__name__ == "LocalFileSystem":
        from luxfuse.understore.fsspec_local import LocalDriver

        return LocalDriver(filesystem, root)
    return FsspecDriver(filesystem, root, family=family, request_timeout_s=request_timeout_s)


def _describe(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    size = info.get("size") or 0
    mtime_ns = next((to_ns(info[name]) for name in _MTIMES if info.get(name)), 0)
    etag = next((str(info[name]) for name in _ETAGS if info.get(name)), None)
    return ObjectInfo(key, size, etag or f"{size}-{mtime_ns}", mtime_ns)
