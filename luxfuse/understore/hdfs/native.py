"""HDFS by its own protocol, spoken by hdfs-native, which needs no Java.

Its asynchronous client runs in fsspec's event loop, where each call can have a deadline; the other one waits for a name
node without any.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fsspec.asyn import get_loop, sync

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.base import PAGE_ENTRIES
from luxfuse.understore.hdfs.java import exception_of
from luxfuse.understore.hdfs.tree import Body, Entry

T = TypeVar("T")

_NUMBERS = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, NotADirectoryError: errno.ENOTDIR,
            PermissionError: errno.EACCES}  # fmt: skip
"""The library's errors have no number of their own."""

_OF_JAVA = re.compile(r'RPCError\("([\w.$]+)"')
_OF_SYSTEM = re.compile(r"\(os error (\d+)\)")


class Native:
    """A tree that a name node, or a name service of several, keeps."""

    protocol = "hdfs"
    async_impl = True  # any number of threads may use it

    def __init__(self, url: str, settings: Mapping[str, str], named: Mapping[str, str], timeout_s: float) -> None:
        """``settings``: Hadoop's own; ``named``: other arguments of the client. ``timeout_s``: how long a step may take."""
        from hdfs_native import AsyncClient

        self._client = AsyncClient(url, dict(settings), **named)
        self._timeout_s = timeout_s

    def _run(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        try:
            result: T = sync(get_loop(), call, *arguments, timeout=self._timeout_s)
        except Exception as exc:  # noqa: BLE001
            raise _translated(exc) from None
        except BaseException as exc:  # a panic of the library is no Exception
            if type(exc).__name__ != "PanicException":
                raise
            raise StoreUnavailable("the HDFS client failed inside") from None
        return result

    def info(self, path: str) -> dict[str, Any]:
        return _entry(self._run(self._client.get_file_info, path)).info(path)

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        found, infos = self._client.list_status(path, False), list[dict[str, Any]]()
        while some := self._run(_some_of, found):
            infos.extend(_entry(status).info(status.path) for status in some)
        return infos

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        async def read() -> bytes:
            reader = await self._client.read(path)
            last = min(end, len(reader))  # behind it the library panics
            data: bytes = await reader.read_range(start, last - start) if start < last else b""
            return data

        return self._run(read)

    def create(self, path: str, body: Body) -> None:
        from hdfs_native import WriteOptions

        writer = self._run(self._client.create, path, WriteOptions(overwrite=False, create_parent=False))
        try:
            for piece in body:
                self._run(writer.write, piece)
        except BaseException:
            with contextlib.suppress(Exception):  # the caller has to know the first error
                self._run(writer.close)
            raise
        self._run(writer.close)

    def replace(self, path: str, target: str) -> None:
        self._run(self._client.rename, path, target, True)

    def set_times(self, path: str, mtime_ms: int, atime_ms: int) -> None:
        self._run(self._client.set_times, path, mtime_ms, atime_ms)

    def set_mode(self, path: str, mode: int) -> None:
        self._run(self._client.set_permission, path, mode)

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        self._run(self._client.mkdirs, path, 0o755, create_parents)

    def rm_file(self, path: str) -> None:
        self._run(self._client.delete, path, False)

    def close(self) -> None:
        """Its connections end with the client."""


async def _some_of(found: AsyncIterator[Any]) -> list[Any]:
    """Return the next entries of a listing, of which a long one takes longer than a step may."""
    some: list[Any] = []
    async for status in found:
        some.append(status)
        if len(some) >= PAGE_ENTRIES:
            break
    return some


def _entry(status: Any) -> Entry:
    return Entry(status.isdir, status.length, status.modification_time, status.access_time, status.permission)


def _translated(exc: Exception) -> Exception:
    text = str(exc)
    if (number := next((n for kind, n in _NUMBERS.items() if isinstance(exc, kind)), None)) is not None:
        return OSError(number, os.strerror(number))
    if isinstance(exc, TimeoutError):
        return exc
    if (java := _OF_JAVA.search(text)) is not None:
        return exception_of(java[1])
    if not isinstance(exc, RuntimeError | OSError):
        return exc
    if (system := _OF_SYSTEM.search(text)) is not None:
        return ConnectionError(int(system[1]), os.strerror(int(system[1])))
    return StoreUnavailable(f"HDFS failed ({(re.match(r'[A-Za-z]+', text) or [type(exc).__name__])[0]})")
