"""Any fsspec file system as an under-store.

`FsspecDriver` uses only what every file system has (ls, info, cat_file); the modules beside it add conditional reads,
page-wise listings and exact keys where a store can do better. `opening` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from luxfuse.errors import NotFound, StoreError, StoreRejected, StoreUnavailable
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import PAGE_ENTRIES, OnDescribed
from luxfuse.understore.failures import checked, require_version
from luxfuse.understore.generic.infos import describe, kind_of
from luxfuse.understore.generic.pool import FileSystems
from luxfuse.understore.generic.writes import ABILITIES, FsspecWrites
from luxfuse.understore.library_failures import failure
from luxfuse.understore.locations import has_dot_segment

T = TypeVar("T")


class FsspecDriver(FsspecWrites):
    """An `UnderStore` on any fsspec file system; reads are checked by asking for the version afterwards."""

    driver = "fsspec"

    def __init__(self, filesystem: Any, root: str, *, family: str = "", request_timeout_s: float = 30.0) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._family = family
        self._timeout_s = request_timeout_s
        self._abilities = ABILITIES
        self._filesystems = FileSystems(filesystem, timeout_s=request_timeout_s, prepare=self._prepare)

    def _prepare(self, filesystem: Any) -> None:
        """Set the options of a connection when it has been made."""

    def probe(self) -> None:
        for _ in self.list_directory(""):
            return

    def _ask(self, what: str, operation: Callable[[Any], T], *, bucket_level: bool = False) -> T:
        """Return ``operation(file system)``, which changes nothing. Raises `StoreError`."""
        try:
            return self._filesystems.run(operation, again=True)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family, bucket_level=bucket_level) from None

    def head(self, key: str) -> ObjectInfo:
        what = f"HEAD {key!r}"
        path = self._file_path(key, what)
        info = self._ask(what, lambda filesystem: filesystem.info(path))
        if info.get("type") == "directory":
            raise NotFound(f"{what}: is a directory")
        return describe(key, info)

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        if prefix and has_dot_segment(prefix[:-1]):
            return
        path = self._path(prefix).rstrip("/")
        try:
            entries = self._ask(
                f"LIST {prefix!r}", lambda filesystem: filesystem.ls(path, detail=True), bucket_level=not prefix
            )
        except NotFound as exc:
            if prefix and type(exc) is NotFound:
                return
            raise
        if len(entries) == 1 and self._is_itself(entries[0], path):
            return  # ls of a file lists the file
        yield from self._pages(prefix, path, entries)

    def _is_itself(self, entry: Mapping[str, Any], path: str) -> bool:
        """Whether the only entry of ``path`` is ``path`` itself, which FTP calls like a file in a directory of its name."""
        name = entry["name"].rstrip("/")
        if entry.get("type") != "file":
            return False
        if name == f"{path}/{path.rpartition('/')[2]}":
            return self._ask(f"HEAD {path!r}", lambda filesystem: kind_of(filesystem, path)) == "file"
        return bool(name == path)

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
                page.objects.append(describe(prefix + name, entry))
            if len(page.objects) + len(page.prefixes) >= PAGE_ENTRIES:
                yield page
                page, yielded = ListPage(), True
        if page.objects or page.prefixes or not yielded:
            yield page

    def _follow(self, key: str) -> dict[str, Any]:
        try:
            info: dict[str, Any] = self._ask(f"HEAD {key!r}", lambda filesystem: filesystem.info(self._path(key)))
        except NotFound:
            return {}  # a dangling link
        return info

    def has_prefix(self, prefix: str) -> bool:
        return next(self.list_directory(prefix), None) is not None

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        what = f"GET {key!r} [{start}, {end})"
        path = self._file_path(key, what)
        data = b""
        try:
            if start < end:
                data = self._ask(what, lambda filesystem: filesystem.cat_file(path, start=start, end=end))
        except (NotFound, StoreUnavailable):
            raise
        except StoreError:
            self._require_version(key, version, what)
            raise
        self._require_version(key, version, what)
        return checked(data, end - start, version, version, what)

    def _require_version(self, key: str, version: str, what: str) -> None:
        """Raise `VersionChanged` if the store holds another version now, that is, after the bytes were read."""
        require_version(self.head(key).version, version, what)

    def close(self) -> None:
        """Free connections."""
        self._filesystems.close()

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
