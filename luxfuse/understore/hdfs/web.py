"""HDFS by WebHDFS, which name nodes, HttpFS and Knox speak: HTTP, with the data sent and fetched at a second address.

The session is that of fsspec's file system, which knows how to log in. That itself has no time-outs, believes what
variables say of certificates, and writes a file in two steps that others see.
"""

from __future__ import annotations

import contextlib
import errno
from typing import Any
from urllib.parse import quote

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.failures import no_store
from luxfuse.understore.generic.infos import info_of
from luxfuse.understore.generic.writes import put_in_place
from luxfuse.understore.hdfs.java import exception_of
from luxfuse.understore.hdfs.tree import Body, Entry

_BINARY = {"Content-Type": "application/octet-stream"}
_BEHIND_END = "out of the range"
"""What a data node says of a range that begins behind the end."""


class Web:
    """A tree behind one address."""

    protocol = "webhdfs"
    async_impl = False

    def __init__(self, filesystem: Any, timeouts_s: tuple[float, float]) -> None:
        """``timeouts_s``: to connect, and for each answer to go on."""
        self._fs = filesystem
        self._session = filesystem.session
        self._timeouts_s = timeouts_s
        self.close = self._session.close

    def _request(self, method: str, url: str, *, params: dict[str, str] | None = None, **arguments: Any) -> Any:
        """Return the answer, a redirection too. Raises what the server's exception stands for."""
        answer = self._session.request(
            method, url, params=params, timeout=self._timeouts_s, allow_redirects=False, **arguments
        )
        if answer.status_code < 400:
            return answer
        try:
            told = answer.json()["RemoteException"]
            name, message = str(told.get("javaClassName") or told["exception"]), str(told.get("message"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unexpected(answer.status_code) from None
        raise _BehindEnd if _BEHIND_END in message else exception_of(name)

    def _call(self, operation: str, path: str, method: str = "GET", **parameters: Any) -> Any:
        given = {name: str(value) for name, value in parameters.items()}
        url = self._fs._apply_proxy(self._fs.url + quote(path, safe="/"))
        return self._request(method, url, params={"op": operation, **given, **self._fs.pars})

    def _json(self, operation: str, path: str, *names: str, method: str = "GET", **parameters: Any) -> Any:
        answer = self._call(operation, path, method, **parameters)
        try:
            found = answer.json()
            for name in names:
                found = found[name]
        except (ValueError, KeyError, TypeError):
            kind = answer.headers.get("Content-Type")
            raise no_store(operation, f"{answer.status_code}, but the answer is not WebHDFS", kind) from None
        return found

    def _where(self, answer: Any) -> str | None:
        """Return the address that an answer sends on to; None if it is the whole answer itself."""
        if answer.status_code < 300:
            return None
        if not (found := answer.headers.get("Location")):
            raise Unexpected(answer.status_code)
        return str(self._fs._apply_proxy(found))

    def info(self, path: str) -> dict[str, Any]:
        return _entry(self._json("GETFILESTATUS", path, "FileStatus")).info(path)

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]:
        infos = []
        for status in self._json("LISTSTATUS", path, "FileStatuses", "FileStatus"):
            name = status["pathSuffix"]
            infos.append(_entry(status).info(f"{path.rstrip('/')}/{name}" if name else path))
        return infos

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        try:
            answer = self._call("OPEN", path, offset=start, length=end - start)
            if (place := self._where(answer)) is not None:
                answer = self._request("GET", place)
        except _BehindEnd:
            return b""
        data: bytes = answer.content
        return data

    def create(self, path: str, body: Body) -> None:
        if self.info(path.rpartition("/")[0] or "/")["type"] != "directory":  # the server would make directories
            raise NotADirectoryError(errno.ENOTDIR, "a file is in the way")
        answer = self._call("CREATE", path, "PUT", overwrite="false", permission="644")
        place = self._where(answer)
        if place is None:
            raise no_store("CREATE", f"{answer.status_code}, but no address for the data")
        self._request("PUT", place, data=body if len(body) else b"", headers=_BINARY)

    def replace(self, path: str, target: str) -> None:
        answer = self._call("RENAME", path, "PUT", destination=target, renameoptions="OVERWRITE")
        if not _refused(answer):
            return
        # HttpFS knows no such option.
        if info_of(self, target) is None:
            self._require("RENAME", path, destination=target)
            return
        aside = put_in_place(lambda old, new: self._require("RENAME", old, destination=new), path, target)
        with contextlib.suppress(Exception):  # the new one is there; what is left has a name that is never listed
            self.rm_file(aside)

    def set_times(self, path: str, mtime_ms: int, atime_ms: int) -> None:
        self._call("SETTIMES", path, "PUT", modificationtime=mtime_ms, accesstime=atime_ms)

    def set_mode(self, path: str, mode: int) -> None:
        self._call("SETPERMISSION", path, "PUT", permission=f"{mode:o}")

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        self._require("MKDIRS", path, permission="755")

    def rm_file(self, path: str) -> None:
        self._call("DELETE", path, "DELETE", recursive="false")

    def _require(self, operation: str, path: str, **parameters: Any) -> None:
        if _refused(self._call(operation, path, "PUT", **parameters)):
            raise StoreUnavailable(f"HDFS did not do {operation}")


class _BehindEnd(Exception):
    """A range begins behind the end of the file."""


class Unexpected(Exception):
    """An answer that tells no exception of the server."""

    def __init__(self, status: int) -> None:
        self.status_code = status
        super().__init__(f"status {status}")


def _refused(answer: Any) -> bool:
    """Whether an answer says that nothing was done, which is not an error to Hadoop."""
    try:
        return bool(answer.json() == {"boolean": False})
    except ValueError:
        return False


def _entry(status: Any) -> Entry:
    number, mode = str(status.get("fileId") or ""), int(status.get("permission") or "0", 8)
    times = status["modificationTime"], status["accessTime"]
    return Entry(status["type"] == "DIRECTORY", status["length"], *times, mode, number)
