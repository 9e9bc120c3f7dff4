"""A `Transport` in C, beside obstore: over the connections of the direct GETs (``gets/pool.c``), without botocore.

To import botocore and make its client takes 0.3 s of processor time, and of the first write that needs it; to sign, send
and parse a request with it some ten times as long as here. It is opened when a request comes that cannot be said here
(`saying`), or cannot be made for a reason that only it can tell.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

from luxfuse.understore.base import ListedPart
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.s3.direct import DirectGets
from luxfuse.understore.s3.saying import Said, say, understand
from luxfuse.understore.s3.transport import Transport

UNSIGNED = "UNSIGNED-PAYLOAD"
_CHECKED_BY_CHECKSUM = ("PutObject", "UploadPart")
"""Where TLS protects their bodies, and a checksum tells if they arrive damaged, those are not signed; as in botocore."""


class AnsweredError(Exception):
    """An answer of the server that is an error, with a ``response`` as the errors of botocore have it."""

    def __init__(self, response: dict[str, Any]) -> None:
        super().__init__()
        self.response = response


class NativeTransport:
    """Makes the requests that can be said here; those that cannot through another transport, which is then opened."""

    def __init__(self, direct: DirectGets, checksums: Checksums, open_other: Callable[[], Transport]) -> None:
        self._direct = direct
        self._checksums = checksums
        self._open_other = open_other
        self._opened: Transport | None = None
        self._lock = threading.Lock()

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        said = say(method, arguments)
        if said is None:
            return self._other().call(method, **arguments)
        added = self._checksums.headers(said.operation, said.body)
        found = self._direct.request(
            said.method, said.key, said.query, {**said.headers, **added.headers}, self._hash(said, added.name), said.body
        )
        if found is None:
            return self._other().call(method, **arguments)
        status, headers, body = found
        answer, error = understand(method, status, headers, body)
        if error is not None:
            raise AnsweredError({**answer, "Error": error})
        self._checksums.compare(said.operation, added, headers)
        return answer

    def _hash(self, said: Said, checksum: str | None) -> str:
        if self._direct.has_tls and checksum is not None and said.operation in _CHECKED_BY_CHECKSUM:
            return UNSIGNED
        return hashlib.sha256(said.body).hexdigest()

    def list_part(
        self, bucket: str, asked: Mapping[str, str], read: Callable[[bytes], ListedPart | None]
    ) -> ListedPart | None:
        return self._other().list_part(bucket, asked, read)

    def close(self) -> None:
        with self._lock:
            other, self._opened = self._opened, None
        if other is not None:
            other.close()

    def _other(self) -> Transport:
        with self._lock:
            if self._opened is None:
                self._opened = self._open_other()
            return self._opened
