"""Answers of S3 as libraries read them: what should be in one and is not makes it an error of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luxfuse.errors import StoreUnavailable
from luxfuse.understore.failures import describe


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
