"""Answers of S3 as libraries read them: one that lacks a part is an error of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.failures import describe, no_store

_OF_LISTINGS = ("IsTruncated", "KeyCount", "Name", "Contents", "CommonPrefixes")


def require_s3(method: str, answer: Mapping[str, Any], what: str) -> None:
    """Raise `NoStore` for an answer that S3 does not give: to libraries, a web page is a listing of nothing, or a success.

    Others than these requests either need something that a page lacks, or have content of any type.
    """
    if method not in ("list_objects_v2", "delete_object", "delete_objects"):
        return
    about = answer.get("ResponseMetadata", {})
    headers = about.get("HTTPHeaders", {})
    kind = headers.get("content-type")
    if method == "list_objects_v2" and not any(name in answer for name in _OF_LISTINGS):
        raise no_store(what, f"{describe(about.get('HTTPStatusCode', 200))}, but the answer is no listing", kind)
    empty = about.get("HTTPStatusCode") == 204 or headers.get("content-length") == "0"
    if not empty and (kind or "").startswith("text/html"):
        raise no_store(what, f"{describe(about.get('HTTPStatusCode', 200))}, but the answer is a page", kind)


class Answered(dict[str, Any]):
    """The parts of an answer to the request ``what``. A part that is missing raises `StoreUnavailable`."""

    def __init__(self, parts: Mapping[str, Any], what: str, status: int | None = None) -> None:
        super().__init__(parts)
        self._what = what
        self._status = status or parts.get("ResponseMetadata", {}).get("HTTPStatusCode", 200)

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        return Answered(found, self._what, self._status) if isinstance(found, dict) else found

    def __missing__(self, name: str) -> Any:
        raise StoreUnavailable(f"{self._what}: {describe(self._status)}, but the answer has no {name}")
