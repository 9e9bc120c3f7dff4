"""Files below an HTTP(S) URL, listed from the server's directory index (the links of its HTML page).

An index names files but not their sizes, so a listing makes one HEAD request for each file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import yarl
from fsspec.asyn import sync

from luxfuse.errors import AccessDenied, BucketMissing, NotFound, StoreError, StoreRejected, VersionChanged
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import OnDescribed
from luxfuse.understore.delegated import ReadOnlyWrites
from luxfuse.understore.failures import checked, from_status, require_version
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.library_failures import failure
from luxfuse.understore.locations import has_dot_segment
from luxfuse.understore.times import to_ns

PAGE_ENTRIES = 200
"""Names per page: each file costs a HEAD, and a page has to fit into a request's deadline."""

HEADS_AT_ONCE = 16

_HEADERS = {"Accept-Encoding": "identity"}  # a compressed body has other bytes and often another ETag


class HttpDriver(ReadOnlyWrites, FsspecDriver):
    """An `UnderStore` on HTTP: ETag where the server sends one, size and Last-Modified otherwise."""

    def probe(self) -> None:
        try:
            sync(self._fs.loop, self._head, "")
        except BucketMissing:
            raise
        except Exception as exc:  # noqa: BLE001
            error = failure(exc, "HEAD ''")
            raise (BucketMissing(str(error)) if isinstance(error, NotFound) else error) from None

    def head(self, key: str) -> ObjectInfo:
        what = f"HEAD {key!r}"
        self._file_path(key, what)
        info: ObjectInfo = self._run(what, self._head, key)
        return info

    async def _head(self, key: str) -> ObjectInfo:
        session = await self._fs.set_session()
        async with session.head(self._url(key), allow_redirects=True, headers=_HEADERS) as response:
            if response.status in (405, 501):  # HEAD is not offered
                async with session.get(self._url(key), headers=_HEADERS) as whole:
                    return _describe(key, whole)
            return _describe(key, response)

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        what = f"LIST {prefix!r}"
        if prefix and has_dot_segment(prefix[:-1]):
            return
        url = self._text_url(prefix)
        try:
            names = sorted(entry["name"] for entry in self._fs.ls(url, detail=True))
        except Exception as exc:  # noqa: BLE001
            error = failure(exc, what, bucket_level=not prefix)
            if prefix and type(error) is NotFound:
                return
            raise error from None
        files, page = [], ListPage()
        for name in names:
            relative = name[len(url) :]
            inner = unquote(relative.removesuffix("/"))
            if not inner or "/" in inner or "?" in relative or "#" in relative:
                continue  # links for sorting, links elsewhere
            if relative.endswith("/"):
                page.prefixes.append(f"{prefix}{inner}/")
            else:
                files.append(prefix + inner)
        if page.prefixes or not files:
            yield page
        for first in range(0, len(files), PAGE_ENTRIES):
            yield ListPage(self._run(what, self._heads, files[first : first + PAGE_ENTRIES]))

    async def _heads(self, keys: list[str]) -> list[ObjectInfo]:
        slots = asyncio.Semaphore(HEADS_AT_ONCE)

        async def describe(key: str) -> ObjectInfo | None:
            async with slots:
                try:
                    return await self._head(key)
                except (NotFound, AccessDenied, StoreRejected):
                    return None  # gone since the index was made, or a link to no readable file: not worth the listing

        found = await asyncio.gather(*map(describe, keys))
        return [info for info in found if info is not None]

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        if start == end:
            return b""
        what = f"GET {key!r} [{start}, {end})"
        self._file_path(key, what)
        data: bytes = self._run(what, self._fetch, key, start, end, version)
        return data

    async def _fetch(self, key: str, start: int, end: int, version: str) -> Buffer:
        what = f"GET {key!r} [{start}, {end})"
        headers = {**_HEADERS, "Range": f"bytes={start}-{end - 1}"}
        if version.startswith('"'):
            headers["If-Match"] = version
        session = await self._fs.set_session()
        async with session.get(self._url(key), headers=headers) as response:
            if response.status == 416:
                raise VersionChanged(f"{what}: the file is shorter now")
            if response.status >= 300:
                raise from_status(response.status, what)
            total = _total(response)
            if response.status != 206 and (start != 0 or total != end):
                response.close()
                if total >= 0 or "ETag" in response.headers:  # else it is not told
                    require_version(_version(response, total), version, what)
                raise StoreRejected(f"{what}: the server ignores Range, so only whole files in one piece can be read")
            return checked(await response.read(), end - start, _version(response, total), version, what)

    def close(self) -> None:
        """Close the connections on fsspec's own event loop."""
        self._fs.close_session(self._fs.loop, sync(self._fs.loop, self._fs.set_session))
        super().close()

    def _run(self, what: str, function: Any, *arguments: Any) -> Any:
        try:
            return sync(self._fs.loop, function, *arguments)
        except StoreError:
            raise
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what) from None

    def _text_url(self, key: str) -> str:
        return f"{self._root}/{quote(key)}"

    def _url(self, key: str) -> yarl.URL:
        return yarl.URL(self._text_url(key), encoded=True)


def _total(response: Any) -> int:
    """Return the size of the whole file."""
    if content_range := response.headers.get("Content-Range"):
        total = content_range.rpartition("/")[2]
        return int(total) if total.isdigit() else -1
    return int(response.headers.get("Content-Length", -1))


def _version(response: Any, total: int) -> str:
    etag: str | None = response.headers.get("ETag")
    return etag or f"{total}-{to_ns(response.headers.get('Last-Modified', ''))}"


def _describe(key: str, response: Any) -> ObjectInfo:
    what = f"HEAD {key!r}"
    if response.status >= 300:
        raise from_status(response.status, what)
    if key and not key.endswith("/") and response.url.path.endswith("/"):
        raise NotFound(f"{what}: is a directory")
    total = _total(response)
    if total < 0 and key:
        raise StoreRejected(f"{what}: the server tells no size")
    mtime_ns = to_ns(response.headers.get("Last-Modified", ""))
    return ObjectInfo(key, total, _version(response, total), mtime_ns)
