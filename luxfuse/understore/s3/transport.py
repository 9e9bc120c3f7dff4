"""How requests of S3's API get to the server: in one of three ways, which are told in the same names, boto's.

Beside obstore it is C (`s3.native`), in the threads that ask, or where that is not to be used or cannot say it, a
synchronous client of botocore (`s3.botocore`): for copies with conditions
or other metadata, multipart uploads that a later process may go on with, deletes whose failures are told by key, tags,
ACLs, other checksums, and keys that obstore cannot name. With ``--driver fsspec`` it is the client that s3fs holds
(`s3.fsspec`), for everything: one set of connections and credentials. Its one event loop for all threads costs time
(docs/COSTS.md), so it is not used beside obstore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from luxfuse.types import Buffer
from luxfuse.understore.base import ListedPart

SLICE_BYTES = 256 << 10
"""A time-out holds for so much of a body: for a whole part over a slow line it would be too short."""


class Transport(Protocol):
    """Connections to one endpoint. Thread-safe."""

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Make one request, without retries, and return its answer.

        A body to send is a `Body`. In the place of one that came is an object with the methods ``read`` and ``close``, for
        any thread. Raises `ClientError` of botocore for answers that are errors, or other errors of the library.
        """

    def list_part(
        self, bucket: str, asked: Mapping[str, str], read: Callable[[bytes], ListedPart | None]
    ) -> ListedPart | None:
        """Make a LIST request, of parameters in boto's names, whose answer ``read`` reads; None: only `call` can.

        Raises errors as `call` does.
        """

    def close(self) -> None:
        """Free connections."""


class Body:
    """Any buffer as a file, which is how botocore hashes it; it is sent in slices, without a copy."""

    def __init__(self, data: Buffer) -> None:
        self.view = memoryview(data)
        self._at = 0

    def __len__(self) -> int:
        return len(self.view)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self.view))[whence]
        return self._at

    def read(self, size: int = -1) -> memoryview:
        end = len(self.view) if size is None or size < 0 else self._at + size
        piece = self.view[self._at : end]
        self._at += len(piece)
        return piece

    def slices(self) -> Iterator[memoryview]:
        """Yield the whole body in pieces."""
        for start in range(0, len(self.view), SLICE_BYTES):
            yield self.view[start : start + SLICE_BYTES]
