"""S3 through s3fs' public `call_s3`: exact keys, page-wise listings, conditional ranged GETs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.asyn import sync

from luxfuse.errors import StoreRejected
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import Abilities, OnDescribed, WriteSide
from luxfuse.understore.delegated import DelegatedWrites
from luxfuse.understore.failures import checked
from luxfuse.understore.generic.driver import FsspecDriver
from luxfuse.understore.library_failures import failure
from luxfuse.understore.object_options import NO_OPTIONS, ObjectOptions
from luxfuse.understore.s3.answers import Answered, require_s3
from luxfuse.understore.s3.client import ABILITIES, S3Client
from luxfuse.understore.times import to_ns


class S3Driver(DelegatedWrites, FsspecDriver):
    """An `UnderStore` that reads through s3fs and writes through `S3Client`, which is faster.

    ``arguments`` are those that the file system was made with.
    """

    def __init__(
        self,
        filesystem: Any,
        root: str,
        arguments: Mapping[str, Any],
        *,
        request_timeout_s: float,
        objects: ObjectOptions = NO_OPTIONS,
    ) -> None:
        super().__init__(filesystem, root, family="s3", request_timeout_s=request_timeout_s)
        filesystem.retries = 1  # retries are made above the drivers
        self._bucket, _, prefix = self._root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._client: S3Client | None = None
        self._arguments = arguments
        self._objects = objects
        self._lock = threading.Lock()

    @property
    def abilities(self) -> Abilities:
        return ABILITIES if self._client is None else self._client.abilities

    def _writer(self) -> WriteSide:
        with self._lock:
            if self._client is None:
                self._client = S3Client(self._bucket, self._prefix, self._arguments, self._timeout_s, self._objects)
            return self._client

    def probe(self) -> None:
        self._list("LIST ''", Prefix=self._prefix, MaxKeys=1)

    def head(self, key: str) -> ObjectInfo:
        response = self._call("head_object", f"HEAD {key!r}", Key=self._prefix + key)
        metadata = {name.lower(): value for name, value in response.get("Metadata", {}).items()}
        return _describe(key, response, response["ContentLength"], metadata)

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        what = f"LIST {prefix!r}"
        full = self._prefix + prefix
        arguments: dict[str, Any] = {"Prefix": full, "Delimiter": "/"}
        skip = len(self._prefix)
        found = False
        while True:
            response = self._list(what, **arguments)
            contents, prefixes = response.get("Contents", ()), response.get("CommonPrefixes", ())
            if contents or prefixes or (not prefix and not found):
                found = True
                yield ListPage(
                    [_describe(c["Key"][skip:], c, c["Size"], None) for c in contents if c["Key"] != full],
                    [p["Prefix"][skip:] for p in prefixes],
                )
            if not response.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = response["NextContinuationToken"]

    def has_prefix(self, prefix: str) -> bool:
        response = self._list(f"LIST {prefix!r}", Prefix=self._prefix + prefix, MaxKeys=1)
        return bool(response.get("Contents"))

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        if start == end:
            return b""
        what = f"GET {key!r} [{start}, {end})"
        condition: dict[str, Any] = {"IfMatch": version} if version.startswith('"') else {}
        span = f"bytes={start}-{end - 1}"
        response = self._call("get_object", what, Key=self._prefix + key, Range=span, **condition)
        body = response["Body"]
        total = response["ContentLength"]
        whole = "ContentRange" not in response and not (start == 0 and total == end)
        try:
            data: bytes = b"" if whole else sync(self._fs.loop, body.read)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family) from None
        finally:
            body.close()
        if whole:
            raise StoreRejected(f"{what}: the server ignores Range, so only whole files in one piece can be read")
        metadata = {name.lower(): value for name, value in response.get("Metadata", {}).items()}
        info = _describe(key, response, _total(response, total), metadata)
        found = checked(data, end - start, info.version, version, what)
        if on_described is not None:
            on_described(info)
        return found

    def close(self) -> None:
        """Close the connections, some of them on fsspec's own event loop."""
        if self._client is not None:
            self._client.close()
        self._fs.close_session(self._fs.loop, self._fs.s3)
        super().close()

    def _list(self, what: str, **arguments: Any) -> dict[str, Any]:
        return self._call("list_objects_v2", what, bucket_level=True, **arguments)

    def _call(self, method: str, what: str, *, bucket_level: bool = False, **arguments: Any) -> dict[str, Any]:
        keyed = {} if bucket_level else self._objects.keyed
        try:
            response: dict[str, Any] = self._fs.call_s3(
                method, Bucket=self._bucket, **self._objects.always, **keyed, **arguments
            )
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, self._family, bucket_level=bucket_level) from None
        require_s3(method, response, what)
        return Answered(response, what)


def _total(response: Mapping[str, Any], length: int) -> int:
    """Return the size of the whole object, of which an answer has ``length`` bytes."""
    return int(response.get("ContentRange", f"/{length}").rpartition("/")[2])


def _describe(key: str, described: dict[str, Any], size: int, metadata: dict[str, str] | None) -> ObjectInfo:
    mtime_ns = to_ns(described["LastModified"])
    return ObjectInfo(key, size, described.get("ETag") or f"{size}-{mtime_ns // 10**9}", mtime_ns, metadata)
