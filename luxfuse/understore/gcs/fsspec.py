"""Google Cloud Storage by gcsfs's client: its JSON API with exact keys, those of directory markers among them.

Versions are generations, which writes name that depend on what is there.
"""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from fsspec.asyn import sync
from gcsfs.core import UnclosableBytesIO

from luxfuse.errors import NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ABSENT, Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import PAGE_ENTRIES, Abilities, OnDescribed
from luxfuse.understore.failures import checked, from_status, no_store, require_version
from luxfuse.understore.gcs.gets import open_gets
from luxfuse.understore.gcs.reach import STORED, reach_by
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.gets.client import FetchesByGets, read_by
from luxfuse.understore.library_failures import failure
from luxfuse.understore.metadata import checked_metadata
from luxfuse.understore.properties import Properties, type_for
from luxfuse.understore.reach import READ_TIMEOUT_S
from luxfuse.understore.times import to_ns

WHOLE_BYTES = 16 << 20
"""Larger files go up in pieces of this size, a multiple of 256 KiB."""

DELETES_AT_ONCE = 16
PATIENCE = 4
"""A request that writes gets so many times the deadline of another one."""

ABILITIES = Abilities(metadata=True, conditional=True, multipart=False, part_copy=False, hierarchical=False, in_order=True)


_FIELDS = {"Cache-Control": "cacheControl", "Content-Disposition": "contentDisposition",
           "Content-Encoding": "contentEncoding", "Content-Language": "contentLanguage"}  # fmt: skip


class GcsDriver(FetchesByGets, FsspecDriver):
    """An `UnderStore` on a bucket of Google's."""

    def __init__(
        self,
        filesystem: Any,
        root: str,
        options: Mapping[str, str],
        *,
        request_timeout_s: float = 30.0,
        direct_gets: int = 0,
    ) -> None:
        """``options``: the storage options. ``direct_gets``: so many requests for content may be made in C at once.

        Raises `ConfigError` for certificates or a proxy that cannot be used.
        """
        reach = reach_by(filesystem, options)
        super().__init__(filesystem, root, family="gs", request_timeout_s=request_timeout_s)
        # Without gcsfs's own retries, up to six with pauses: they would outlast deadlines.
        filesystem._request = functools.partial(type(filesystem)._request.__wrapped__, filesystem)
        self._abilities = ABILITIES
        self._bucket, _, prefix = root.strip("/").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._gets = open_gets(filesystem, self._bucket, self._prefix, reach, request_timeout_s, direct_gets)
        self._uploads = f"{filesystem._location}/upload/storage/v1/b/{self._bucket}/o"

    def head(self, key: str) -> ObjectInfo:
        return self._described(self._item(key))

    def _item(self, key: str) -> dict[str, Any]:
        limit_s = min(READ_TIMEOUT_S, self._timeout_s)
        what, path = f"HEAD {key!r}", ("b/{}/o/{}", self._bucket, self._prefix + key)
        item: dict[str, Any] = self._call(what, "GET", *path, limit_s=limit_s)
        return item

    def examine(self, key: str, *, whole: bool = True) -> Properties:
        item = self._item(key)
        headers = {name: item[field] for name, field in _FIELDS.items() if item.get(field)}
        return Properties(self._described(item), item.get("contentType"), headers, item.get("storageClass"))

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        full, found = self._prefix + prefix, False
        for answer in self._walk(prefix, f"LIST {prefix!r}", delimiter="/"):
            page = ListPage(prefixes=[name[len(self._prefix) :] for name in answer.get("prefixes", ())])
            items = answer.get("items", ())
            page.objects.extend(self._listed(item) for item in items if item["name"] != full)
            if items or page.prefixes or (not prefix and not found):
                found = True
                yield page

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        for answer in self._walk(prefix, f"LIST {prefix!r}"):
            if items := answer.get("items"):
                yield ListPage([self._listed(item) for item in items])

    def has_prefix(self, prefix: str) -> bool:
        return any(answer.get("items") for answer in self._walk(prefix, f"LIST {prefix!r}", maxResults=1))

    def _walk(self, prefix: str, what: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            answer = self._call(what, "GET", "b/{}/o", self._bucket, bucket_level=True, **{
                "prefix": self._prefix + prefix, "maxResults": PAGE_ENTRIES, "pageToken": token, **parameters
            })  # fmt: skip
            if not isinstance(answer, dict) or answer.get("kind") != "storage#objects":
                raise no_store(what, "200 OK, but the answer is no listing")
            yield answer
            token = answer.get("nextPageToken")
            if not token:
                return

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        part = read_by(self._gets, key, start, end, version, on_described)
        if part is not None:
            return part
        what = f"GET {key!r} [{start}, {end})"
        if start == end:
            self._require_version(key, version, what)
            return b""
        headers, data = self._call(
            what, "GET", "b/{}/o/{}", self._bucket, self._prefix + key, json_out=False, alt="media",
            headers={"Range": f"bytes={start}-{end - 1}", **STORED},
            ifGenerationMatch=version if version.isdecimal() else None,
        )  # fmt: skip
        found = headers.get("x-goog-generation")
        if found is None:
            self._require_version(key, version, what)
        return checked(data, end - start, found or version, version, what)

    def close(self) -> None:
        self._gets = None
        super().close()

    def put(
        self,
        key: str,
        data: Buffer,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"PUT {key!r}"
        about = self._about(key, metadata, what, keep)
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(about)}\r\n"
        head += f"--{boundary}\r\nContent-Type: {about['contentType']}\r\n\r\n"
        body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
        headers = {"Content-Type": f'multipart/related; boundary="{boundary}"'}
        answer = self._call(
            what, "POST", self._uploads, bucket_level=True, uploadType="multipart", headers=headers,
            data=UnclosableBytesIO(body), ifGenerationMatch=_generation(expect, what),
        )  # fmt: skip
        return self._written(answer, len(data), metadata, what)

    def put_file(
        self,
        key: str,
        path: str,
        metadata: Mapping[str, str],
        *,
        expect: str | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what, size = f"PUT {key!r}", Path(path).stat().st_size
        with Path(path).open("rb") as source:
            if size <= WHOLE_BYTES:
                return self.put(key, source.read(), metadata, expect=expect, keep=keep)
            about = self._about(key, metadata, what, keep)
            headers, _ = self._call(
                what, "POST", self._uploads, bucket_level=True, json_out=False, uploadType="resumable", json=about,
                headers={"X-Upload-Content-Type": about["contentType"]}, ifGenerationMatch=_generation(expect, what),
            )  # fmt: skip
            answer: Any = b""
            for start in range(0, size, WHOLE_BYTES):
                piece = source.read(WHOLE_BYTES)
                bounds = {"Content-Range": f"bytes {start}-{start + len(piece) - 1}/{size}"}
                taken, answer = self._call(
                    what, "POST", headers["Location"], json_out=False, headers=bounds, data=UnclosableBytesIO(piece)
                )
                end = taken.get("Range", "").rpartition("-")[2]
                if end.isdigit() and int(end) != start + len(piece) - 1:
                    raise StoreUnavailable(f"{what}: the store took only a part of a piece")
        return self._written(json.loads(answer), size, metadata, what)

    def _about(self, key: str, metadata: Mapping[str, str], what: str, keep: Properties | None) -> dict[str, Any]:
        own = checked_metadata(metadata, what)
        about = {"name": self._prefix + key, "contentType": type_for(key, keep), "metadata": own}
        if keep is not None:
            about |= {_FIELDS[name]: value for name, value in keep.headers.items()}
            about |= {"storageClass": keep.storage_class} if keep.storage_class else {}
        return about

    def _written(self, answer: dict[str, Any], size: int, metadata: Mapping[str, str], what: str) -> ObjectInfo:
        info = self._described(answer)
        if info.size != size:
            raise StoreUnavailable(f"{what}: {info.size} bytes of {size} arrived")
        return ObjectInfo(info.key, size, info.version, info.mtime_ns, dict(metadata))

    def copy(
        self,
        source: str,
        target: str,
        *,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expect: str | None = None,
        size: int | None = None,
        keep: Properties | None = None,
    ) -> ObjectInfo:
        what = f"COPY {source!r} to {target!r}"
        keep = keep or self.examine(source)
        found = keep.info
        require_version(found.version, version, what)
        typed = keep.content_type and type_for(target, keep) != keep.content_type
        if metadata is None and (typed or keep.storage_class not in (None, "STANDARD")):
            metadata = found.metadata or {}  # a copy has all of its source by itself, or only the named properties
        about = {} if metadata is None else self._about(target, metadata, what, keep)
        ends = (self._bucket, self._prefix + source, self._bucket, self._prefix + target)
        token: str | None = None
        while True:
            answer = self._call(
                what, "POST", "b/{}/o/{}/rewriteTo/b/{}/o/{}", *ends, json=about, rewriteToken=token,
                ifSourceGenerationMatch=found.version, ifGenerationMatch=_generation(expect, what),
            )  # fmt: skip
            if answer["done"] is True:
                break
            token = answer["rewriteToken"]
        return self._described(answer["resource"])

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}

        async def delete_all() -> None:
            slots = asyncio.Semaphore(DELETES_AT_ONCE)

            async def delete(key: str) -> None:
                async with slots:
                    try:
                        await self._fs._call("DELETE", "b/{}/o/{}", self._bucket, self._prefix + key)
                    except Exception as exc:  # noqa: BLE001
                        error = self._failure(exc, f"DELETE {key!r}")
                        if type(error) is not NotFound:
                            failures[key] = error

            await asyncio.gather(*map(delete, keys))

        try:
            sync(self._fs.loop, delete_all, timeout=PATIENCE * self._timeout_s)
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, f"DELETE of {len(keys)} keys") from None
        if len(keys) == 1 and failures and failures[keys[0]].retryable:
            raise failures[keys[0]] from None
        return failures

    def _call(
        self,
        what: str,
        method: str,
        path: str,
        *names: str,
        bucket_level: bool = False,
        json_out: bool = True,
        limit_s: float = 0.0,
        **arguments: Any,
    ) -> Any:
        """Make a request, for which gcsfs would wait without end: ``limit_s``, else as long as one of its kind may take."""
        limit_s = limit_s or (1 if method == "GET" else PATIENCE) * self._timeout_s
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            return sync(self._fs.loop, self._fs._call, method, path, *names, timeout=limit_s, json_out=json_out, **given)
        except Exception as exc:  # noqa: BLE001
            raise self._failure(exc, what, bucket_level=bucket_level) from None

    def _failure(self, exc: Exception, what: str, *, bucket_level: bool = False) -> StoreError:
        """Return the `StoreError` for ``exc``; gcsfs has own ways to say 403 and 412."""
        if isinstance(exc, FileExistsError):
            return from_status(412, what)
        if type(exc) is OSError and str(exc).startswith("Forbidden"):
            return from_status(403, what, family="gs")
        return failure(exc, what, "gs", bucket_level=bucket_level)

    def _listed(self, item: Mapping[str, Any]) -> ObjectInfo:
        """As other stores list: without metadata, though Google's lists have them."""
        return msgspec.structs.replace(self._described(item), metadata=None)

    def _described(self, item: Mapping[str, Any]) -> ObjectInfo:
        version = str(item.get("generation") or item["etag"])
        own = item.get("metadata", {}).items()
        metadata = {name.lower(): value for name, value in own if value is not None}
        key = item["name"][len(self._prefix) :]
        return ObjectInfo(key, int(item.get("size", 0)), version, to_ns(item.get("updated", "")), metadata)


def _generation(version: str | None, what: str) -> str | None:
    """Return what Google calls the version that a write is to replace, 0 for none; None for any.

    Raises `VersionChanged` for one that no object can have, an ETag that the other driver has noted, say.
    """
    if version is None or version.isdecimal():
        return version
    if version == ABSENT:
        return "0"
    raise VersionChanged(f"{what}: there is no version {version}")
