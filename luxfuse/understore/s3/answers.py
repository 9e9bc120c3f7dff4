"""Answers of S3 as libraries read them: one that lacks a part is an error of the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.failures import describe, no_store

ROOT = "LuxfuseRoot"
"""The part of an answer that holds the name of its outermost element."""

_OF_LISTINGS = ("IsTruncated", "KeyCount", "Name", "Contents", "CommonPrefixes")


_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s|<\?.*?\?>|<!.*?>)*<(?:[\w.-]+:)?([\w.-]+)", re.DOTALL)


def register(session: Any) -> None:
    """Have the client of botocore that the session is going to make tell what it parses away: `ROOT`."""
    session.register("before-parse.s3.DeleteObjects", _note_root)


def _note_root(response_dict: Mapping[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    found = _ROOT.match(response_dict["body"])
    customized_response_dict[ROOT] = found[1].decode() if found else ""


def require_s3(method: str, answer: Mapping[str, Any], what: str) -> None:
    """Raise `NoStore` for an answer that S3 does not give: to libraries, a web page is a listing of nothing, or a success.

    Others than these requests either need something that a page lacks, or have content of any type. The type of an answer
    that has a name in its body says nothing: Swift's to a delete of many is right, and of type text/html.
    """
    about = answer.get("ResponseMetadata", {})
    headers = about.get("HTTPHeaders", {})
    kind = headers.get("content-type")
    empty = about.get("HTTPStatusCode") == 204 or headers.get("content-length") == "0"
    seen = describe(about.get("HTTPStatusCode", 200))
    if method == "list_objects_v2" and not any(name in answer for name in _OF_LISTINGS):
        raise no_store(what, f"{seen}, but the answer is no listing", kind)
    if method == "delete_objects" and not empty and answer.get(ROOT) != "DeleteResult":
        raise no_store(what, f"{seen}, but the answer says nothing of deletes", kind)
    if method == "delete_object" and not empty and (kind or "").startswith("text/html"):
        raise no_store(what, f"{seen}, but the answer is a page", kind)


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
