"""WebDAV by the HTTP client of webdav4, which itself alters names with % in them, discards the
bytes before a range that it reads, and does not copy over a present file.

`Dav` has the methods of an fsspec file system that `FsspecDriver` uses.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from luxfuse.errors import StoreRejected, VersionChanged
from luxfuse.types import Buffer, ObjectInfo
from luxfuse.understore.base import OnDescribed
from luxfuse.understore.failures import checked, from_status, require_version
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.generic.infos import describe

COPY_BYTES = 1 << 20
_PLAIN = {"Accept-Encoding": "identity"}  # a compressed body has other bytes and often another ETag
_XML = {"Content-Type": "application/xml"}
_PROPERTIES = (
    '<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    "<resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>"
)


class Dav:
    """The tree at a base URL. Any number of threads may use it."""

    protocol = "webdav"
    async_impl = False

    def __init__(self, filesystem: Any) -> None:
        self._http = filesystem.client.http
        self._base = str(filesystem.client.base_url).partition("?")[0].rstrip("/")
        self.close = self._http.close

    def url(self, path: str) -> str:
        """Return the URL of a path, in which no character means anything but itself."""
        path = path.strip("/")
        return f"{self._base}/{quote(path)}" if path else f"{self._base}/"

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """Return the answer, of any status."""
        return self._http.request(method, self.url(path), **arguments)

    def info(self, path: str) -> dict[str, Any]:
        (found, *_) = self._properties(path, "0") or [None]
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return {**_properties_of(found), "name": path}

    def ls(self, path: str, detail: bool = True) -> list[Any]:
        """Return the entries of a directory; a file is alone in its own listing."""
        top = _path_of(self.url(path))
        infos = []
        for found in self._properties(path, "1"):
            below = found.path.strip("/")
            if below == top:
                if (info := _properties_of(found))["type"] == "file":
                    return [{**info, "name": path}] if detail else [path]
                continue
            if not top or below.startswith(f"{top}/"):
                name = below[len(top) :].lstrip("/")
                infos.append({**_properties_of(found), "name": f"{path.rstrip('/')}/{name}"})
        return infos if detail else [info["name"] for info in infos]

    def _properties(self, path: str, depth: str) -> list[Any]:
        from webdav4.multistatus import MultiStatusResponse

        headers = {**_XML, "Depth": depth}
        answer = self.request("PROPFIND", path, content=_PROPERTIES, headers=headers, follow_redirects=True)
        self._accept(answer, 207)
        return list(MultiStatusResponse(answer.text).responses.values())

    def mkdir(self, path: str, create_parents: bool = True) -> None:
        self._accept(self.request("MKCOL", path), 201)

    def pipe_file(self, path: str, value: bytes) -> None:
        self._accept(self.request("PUT", path, content=value), 200, 201, 204)

    def put_file(self, local: str, path: str) -> None:
        with Path(local).open("rb") as source:
            size = Path(local).stat().st_size

            def blocks() -> Iterator[bytes]:
                while block := source.read(COPY_BYTES):
                    yield block

            answer = self.request("PUT", path, content=blocks(), headers={"Content-Length": str(size)})
        self._accept(answer, 200, 201, 204)

    def cp_file(self, path: str, target: str) -> None:
        import httpx

        destination = str(httpx.URL(self.url(target)).copy_with(username=None, password=None))
        headers = {"Destination": destination, "Overwrite": "T", "Depth": "0"}
        self._accept(self.request("COPY", path, headers=headers), 201, 204)

    def rm_file(self, path: str) -> None:
        self._accept(self.request("DELETE", path), 200, 204)

    def rmdir(self, path: str) -> None:
        self.rm_file(path)

    def _accept(self, answer: Any, *statuses: int) -> None:
        if answer.status_code == 404:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        if answer.status_code not in statuses:
            raise Unexpected(answer.status_code)


class Unexpected(Exception):
    """An answer with a status that is no success."""

    def __init__(self, status: int) -> None:
        # 412 of a request without a condition is not about a version; 207 tells of a part that failed.
        self.status_code = {412: 400, 207: 500}.get(status, status)
        super().__init__(f"status {status}")


class WebDavDriver(FsspecDriver):
    """An `UnderStore` on WebDAV. Versions are ETags, or size and time where the server has none."""

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        what = f"GET {key!r} [{start}, {end})"
        path = self._file_path(key, what)
        if start == end:
            self._require_version(key, version, what)
            return b""
        headers = {**_PLAIN, "Range": f"bytes={start}-{end - 1}"}
        if version.startswith('"'):
            headers["If-Match"] = version

        def read(dav: Dav) -> Buffer:
            answer = dav.request("GET", path, headers=headers, follow_redirects=True)
            if answer.status_code == 416:
                raise VersionChanged(f"{what}: the file is shorter now")
            if answer.status_code >= 300:
                raise from_status(answer.status_code, what)
            found = _version_of(key, answer)
            data: bytes = answer.content
            if answer.status_code != 206 and (start != 0 or found.size != end):
                if found.size >= 0 or found.version.startswith('"'):  # else it is not told
                    require_version(found.version, version, what)
                raise StoreRejected(f"{what}: the server ignores Range, so only whole files in one piece can be read")
            return checked(data, end - start, found.version, version, what)

        data = self._ask(what, read)
        # A server that writes files in place (rclone) describes the old one and then sends some of the new one.
        self._require_version(key, version, what)
        return data


def _version_of(key: str, answer: Any) -> ObjectInfo:
    """Return the description of the file in the headers of an answer to GET, as `Dav.info` would."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
    named = {name: answer.headers.get(name) for name in ("ETag", "Last-Modified")}
    return describe(key, {"size": int(total) if total.isdigit() else -1, **named})


def _properties_of(found: Any) -> dict[str, Any]:
    properties = found.properties
    return {
        "type": "directory" if properties.collection else "file",
        "size": properties.content_length or 0,
        "etag": properties.etag,
        "modified": properties.modified,
    }


def _path_of(url: str) -> str:
    import httpx

    return httpx.URL(url).path.strip("/")
