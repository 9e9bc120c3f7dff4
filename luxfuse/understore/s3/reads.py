"""The reads of an S3 store: exact keys, page-wise listings, conditional ranged GETs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luxfuse.errors import StoreRejected
from luxfuse.types import Buffer, ListPage, ObjectInfo
from luxfuse.understore.base import ListedPart, OnDescribed
from luxfuse.understore.failures import checked
from luxfuse.understore.library_failures import failure
from luxfuse.understore.s3.pages import listing_of, part_of
from luxfuse.understore.s3.requests import Requests
from luxfuse.understore.times import to_ns


class S3Reads:
    """The reading half of `S3Client`."""

    def __init__(self, requests: Requests, prefix: str) -> None:
        self._requests = requests
        self._call = requests.call
        self._prefix = prefix

    def probe(self) -> None:
        self._list("", MaxKeys=1)

    def head(self, key: str) -> ObjectInfo:
        return self._describe(key, self._head(key))

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        full, skip = self._prefix + prefix, len(self._prefix)
        found = False
        for answer in self._pages(prefix, Delimiter="/"):
            contents, prefixes = answer.get("Contents", ()), answer.get("CommonPrefixes", ())
            if contents or prefixes or (not prefix and not found):
                found = True
                yield ListPage(
                    [self._describe(entry["Key"][skip:], entry) for entry in contents if entry["Key"] != full],
                    [entry["Prefix"][skip:] for entry in prefixes],
                )

    def list_page(self, prefix: str, after: str = "", token: str = "") -> ListedPart:
        full, skip = self._prefix + prefix, len(self._prefix)
        asked = listing_of(full, after and self._prefix + after, token)
        part = self._requests.list_part(asked, lambda body: part_of(body, full, skip), f"LIST {prefix!r}")
        if part is not None:
            return part
        answer = self._list(prefix, **{name: value for name, value in asked.items() if name != "Prefix"})
        contents, prefixes = answer.get("Contents", ()), answer.get("CommonPrefixes", ())
        page = ListPage(
            [self._describe(entry["Key"][skip:], entry) for entry in contents if entry["Key"] != full],
            [entry["Prefix"][skip:] for entry in prefixes],
        )
        more = answer["NextContinuationToken"] if answer.get("IsTruncated") else ""
        return ListedPart(page, more, bool(contents or prefixes))

    def list_all(self, prefix: str) -> Iterator[ListPage]:
        skip = len(self._prefix)
        for answer in self._pages(prefix):
            if found := [self._describe(entry["Key"][skip:], entry) for entry in answer.get("Contents", ())]:
                yield ListPage(found)

    def has_prefix(self, prefix: str) -> bool:
        return bool(self._list(prefix, MaxKeys=1).get("Contents"))

    def read(self, key: str, start: int, end: int, version: str, *, on_described: OnDescribed | None = None) -> Buffer:
        if start == end:
            return b""
        what = f"GET {key!r} [{start}, {end})"
        condition: dict[str, Any] = {"IfMatch": version} if version.startswith('"') else {}
        answer = self._call("get_object", what, Key=self._prefix + key, Range=f"bytes={start}-{end - 1}", **condition)
        body, length = answer["Body"], answer["ContentLength"]
        whole = "ContentRange" not in answer and not (start == 0 and length == end)
        try:
            data: bytes = b"" if whole else body.read()
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, "s3") from None
        finally:
            body.close()
        if whole:
            raise StoreRejected(f"{what}: the server ignores Range, so only whole files in one piece can be read")
        total = int(answer.get("ContentRange", f"/{length}").rpartition("/")[2])
        info = self._describe(key, answer, total)
        found = checked(data, end - start, info.version, version, what)
        if on_described is not None:
            on_described(info)
        return found

    def _head(self, key: str) -> dict[str, Any]:
        return self._call("head_object", f"HEAD {key!r}", Key=self._prefix + key)

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Yield the answers that make up a listing."""
        while True:
            answer = self._list(prefix, **arguments)
            yield answer
            if not answer.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = answer["NextContinuationToken"]

    def _list(self, prefix: str, **arguments: Any) -> dict[str, Any]:
        return self._call(
            "list_objects_v2", f"LIST {prefix!r}", bucket_level=True, Prefix=self._prefix + prefix, **arguments
        )

    def _describe(self, key: str, described: Mapping[str, Any], total: int | None = None) -> ObjectInfo:
        """Return the description of an object in an answer; ``total`` is its size if the answer has a part of it."""
        listed = "Size" in described
        size: int = total if total is not None else described["Size" if listed else "ContentLength"]
        mtime_ns = to_ns(described["LastModified"])
        metadata = None if listed else {name.lower(): value for name, value in described.get("Metadata", {}).items()}
        return ObjectInfo(key, size, described.get("ETag") or f"{size}-{mtime_ns // 10**9}", mtime_ns, metadata)
