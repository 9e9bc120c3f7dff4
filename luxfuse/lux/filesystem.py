"""`LuxFileSystem`: hands each call to the local file system, for a path in a mount, or to the driver of the store."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from fsspec.spec import AbstractFileSystem

from luxfuse.core.values import nearest
from luxfuse.errors import ConfigError
from luxfuse.lux.routes import Held, Routes, account_of, place_of
from luxfuse.understore.generic.known import refuse_unknown
from luxfuse.understore.locations import family_of

T = TypeVar("T")
_GONE = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a mount answers whose daemon has died."""
_ROOTED = ("file", "memory")
"""Protocols whose paths begin with a slash."""
_FORM = "write lux://PROTOCOL/BUCKET/KEY, such as lux://s3/bucket/key"
_OWN = frozenset({"use_mount", "asynchronous", "loop", "batch_size", "skip_instance_cache"})
_OF_ALL = frozenset({"client", "fs", "listings_expiry_time", "max_paths", "session", "use_listings_cache"})
"""Options of drivers in a program, beside those that the settings of a mount can have."""
_POPPED: Mapping[str, frozenset[str]] = {
    "sftp": frozenset({"host_key_policy", "temppath"}), "ssh": frozenset({"host_key_policy", "temppath"}),
    "smb": frozenset({"temppath"}),
    "http": frozenset({"data", "json", "params"}), "https": frozenset({"data", "json", "params"}),
}  # fmt: skip
"""By protocol: those that its driver takes out of the others, so that no signature tells."""


@dataclass(frozen=True, slots=True)
class _At:
    """The file system that has a path, what it is called there, and what is held of a mount if it is in one."""

    fs: Any
    inner: str
    held: Held | None = None


class LuxFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """See `luxfuse.lux`. ``use_mount=False`` asks the store always; all other options are those of its driver."""

    protocol = "lux"
    root_marker = ""
    async_impl = False

    def __init__(self, *, use_mount: bool = True, **storage_options: Any) -> None:
        super().__init__(use_mount=use_mount, **storage_options)
        self._options = {name: value for name, value in storage_options.items() if name not in _OWN}
        self._checked: set[str] = set()
        """Protocols of which it is known that there are drivers, and that these know the options."""
        self._routes = Routes(self._options) if use_mount else None
        self._local = LocalFileSystem(auto_mkdir=True)

    # -- where a path is

    def _store(self, protocol: str) -> Any:
        """Return the driver of a protocol. Raises ValueError if there is none, or it does not know an option."""
        if protocol == "file":
            return self._local
        if protocol not in self._checked:
            self._check(protocol)
            self._checked.add(protocol)
        return fsspec.filesystem(protocol, **self._options)

    def _check(self, protocol: str) -> None:
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError:
            hint = nearest(protocol, fsspec.available_protocols())
            raise ValueError(f"lux://{protocol}/: unknown protocol {protocol!r}{hint}; {_FORM}") from None
        url = f"{protocol}://"
        try:
            ours = _OWN | _OF_ALL | _POPPED.get(protocol, frozenset())
            refuse_unknown(url, family_of(url) or "", self._options, ours, protocol)
        except ConfigError as exc:
            raise ValueError(str(exc)) from None

    @contextmanager
    def _at(self, path: str) -> Iterator[_At]:
        """Find what has a path, and hold it if that is a mount."""
        path = self._strip_protocol(path)
        protocol, _, rest = path.partition("/")
        if not protocol:
            raise FileNotFoundError(errno.ENOENT, _FORM, path)
        url = f"{protocol}://{rest}"
        held = self._routes.hold(*place_of(url), account_of(url)) if self._routes is not None else None
        if held is None:
            store = self._store(protocol)
            yield _At(store, store._strip_protocol(f"{protocol}://{'/' if protocol in _ROOTED else ''}{rest}"))
            return
        with held:
            try:
                yield _At(self._local, held.inner, held)
            except OSError as exc:
                held.name(exc)
                raise

    def exists(self, path: str, **kwargs: Any) -> bool:
        """As of `AbstractFileSystem`, but an option that no driver knows is no answer. Raises ValueError."""
        with self._at(path):
            return bool(super().exists(path, **kwargs))

    def _do(self, path: str, call: Callable[[Any, str], T]) -> T:
        """Call it on what has a path; see `_do_at`."""
        return self._do_at(path, lambda at: call(at.fs, at.inner))

    def _do_at(self, path: str, call: Callable[[_At], T]) -> T:
        """Call it on what has a path; once more on the store if its mount has just died."""
        mounted = False
        try:
            with self._at(path) as at:
                mounted = at.held is not None
                return call(at)
        except OSError as exc:
            if exc.errno not in _GONE or not mounted or self._routes is None:
                raise
            self._routes.forget()
            with self._at(path) as at:
                if at.held is not None:
                    raise
                return call(at)

    def in_mount(self, path: str) -> str | None:
        """Return the path in a mount of this machine that is used for ``path``; None if the store is asked for it."""
        with self._at(path) as at:
            return at.held.path if at.held is not None else None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return str(fsspec.utils.stringify_path(path)).removeprefix("lux://").strip("/")

    def _named(self, path: str, fs: Any, inner: str, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is known of a file at or below ``path``, which is ``inner`` there, under its name here."""
        path = self._strip_protocol(path)
        inner = str(fs._strip_protocol(inner)).rstrip("/")
        below = str(info["name"]).rstrip("/")
        if below.lstrip("/") == inner.lstrip("/"):
            return {**info, "name": path}
        return {**info, "name": f"{path}/{below.lstrip('/')[len(inner.lstrip('/')) :].lstrip('/')}"}

    def _is_top(self, path: str) -> bool:
        return "/" not in self._strip_protocol(path)

    # -- names

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return what is known of a file or directory, as its own file system has it."""
        if self._is_top(path):
            return {"name": self._strip_protocol(path), "size": 0, "type": "directory"}
        return self._do(path, lambda fs, inner: self._named(path, fs, inner, fs.info(inner, **kwargs)))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a directory."""

        def listed(fs: Any, inner: str) -> list[dict[str, Any]]:
            return [self._named(path, fs, inner, info) for info in fs.ls(inner, detail=True, **kwargs)]

        found = self._do(path, listed)
        return found if detail else [info["name"] for info in found]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """List all below a path; a store does that with fewer requests than directory by directory."""
        if self._is_top(path):
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)

        def find(fs: Any, inner: str) -> dict[str, dict[str, Any]]:
            below = fs.find(inner, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
            named = (self._named(path, fs, inner, {**info, "name": name}) for name, info in below.items())
            return {info["name"]: info for info in named}

        found = self._do(path, find)
        return found if detail else list(found)

    def created(self, path: str) -> Any:
        """When a file was made."""
        return self._do(path, lambda fs, inner: fs.created(inner))

    def modified(self, path: str) -> Any:
        """When a file was changed last."""
        return self._do(path, lambda fs, inner: fs.modified(inner))

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings, of a path or of all, and which mounts there are."""
        if self._routes is not None:
            self._routes.forget()
        if path is not None and not self._is_top(path):
            self._do(path, lambda fs, inner: fs.invalidate_cache(inner))

    # -- directories

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory."""
        self._do(path, lambda fs, inner: fs.mkdir(inner, create_parents=create_parents, **kwargs))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory, and those above it."""
        if not self._is_top(path):
            self._do(path, lambda fs, inner: fs.makedirs(inner, exist_ok=exist_ok))

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._do(path, lambda fs, inner: fs.rmdir(inner))

    # -- content

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Any:
        def opened(at: _At) -> Any:
            if at.fs is not self._local:
                sized = {} if block_size is None else {"block_size": block_size}
                return at.fs.open(at.inner, mode, **sized, **{n: v for n, v in kwargs.items() if v is not None})
            kept = {name: value for name, value in kwargs.items() if name in ("autocommit", "compression")}
            if at.held is None:
                return self._local._open(at.inner, mode, block_size=block_size, **kept)
            if kept.get("autocommit", True) or "w" not in mode:
                return _named_as(at.held.path, self._local._open(at.inner, mode, block_size=block_size, **kept))
            return _Aside(self, path, at.held.path, mode, **kept)

        return self._do_at(path, opened)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file, or some of them."""
        return self._do(path, lambda fs, inner: bytes(fs.cat_file(inner, start=start, end=end, **kwargs)))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file."""
        self._do(path, lambda fs, inner: fs.pipe_file(inner, value, mode=mode, **kwargs))

    def get_file(self, rpath: str, lpath: Any, **kwargs: Any) -> None:
        """Copy a file to the local disk."""
        self._do(rpath, lambda fs, inner: fs.get_file(inner, lpath, **kwargs))

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        """Copy a file from the local disk."""
        self._do(rpath, lambda fs, inner: fs.put_file(lpath, inner, **kwargs))

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file."""
        self._do(path, lambda fs, inner: fs.touch(inner, truncate=truncate, **kwargs))

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file, inside the store where both are there."""
        with self._at(path1) as one, self._at(path2) as other:
            if one.fs is other.fs:
                one.fs.cp_file(one.inner, other.inner, **kwargs)
            elif one.fs.isdir(one.inner):
                other.fs.makedirs(other.inner, exist_ok=True)
            else:
                with one.fs.open(one.inner, "rb") as source, other.fs.open(other.inner, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Move a file or directory."""
        with self._at(path1) as one, self._at(path2) as other:
            if one.held is not None and other.held is not None and one.held.route == other.held.route:
                self._local.mv(one.inner, one.held.by_this(other.held.path), **kwargs)
                return
            if one.fs is other.fs is self._local and one.held is other.held is None:
                self._local.mv(one.inner, other.inner, **kwargs)
                return
        super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self._do(path, lambda fs, inner: fs.rm_file(inner))

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and with ``recursive`` directories: a store does that many at a time."""
        for each in path if isinstance(path, list) else [path]:
            if maxdepth is not None or fsspec.core.has_magic(str(each)):
                super().rm(each, recursive=recursive, maxdepth=maxdepth)
            elif self._strip_protocol(each).count("/") < 1:
                raise PermissionError(errno.EPERM, "is no file, and not removed as a whole", each)
            else:
                self._do(each, lambda fs, inner: fs.rm(inner, recursive=recursive))


def _named_as(path: str, file: Any) -> Any:
    """Let an open file have the path that users know, and not the one that it was opened by."""
    file.path = path
    raw = getattr(file.f, "raw", None)
    if raw is not None:
        raw.name = path
    return file


class _Aside(LocalFileOpener):  # type: ignore[misc]
    """A file of a transaction: it goes to its place at the end of that, where it then is."""

    def __init__(self, owner: LuxFileSystem, place: str, path: str, mode: str, **kwargs: Any) -> None:
        """``place``: the path in ``owner``; ``path``: the one on this machine."""
        self._owner, self._place = owner, place
        super().__init__(path, mode, fs=owner._local, **kwargs)

    def commit(self) -> None:
        """Put the content where it belongs."""
        self.f.close()
        self._owner.put_file(self.temp, self._place)
        Path(self.temp).unlink()
