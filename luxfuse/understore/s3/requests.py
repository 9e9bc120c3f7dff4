"""How one request of S3's API is made: with the parameters that every request of its kind has, and its checksum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luxfuse.understore.base import ListedPart
from luxfuse.understore.checksums import Checksums
from luxfuse.understore.library_failures import failure, status_of
from luxfuse.understore.object_options import ObjectOptions
from luxfuse.understore.s3.answers import Answered, require_s3
from luxfuse.understore.s3.properties import Examiner
from luxfuse.understore.s3.transport import Transport

_MAKES_OBJECTS = frozenset({"put_object", "copy_object", "create_multipart_upload"})
_COPIES = frozenset({"copy_object", "upload_part_copy"})
_TOUCHES_CONTENT = (
    _MAKES_OBJECTS | _COPIES | {"get_object", "head_object", "upload_part", "complete_multipart_upload", "list_parts"}
)


class Requests:
    """Makes requests about one bucket, named as in boto. Thread-safe."""

    def __init__(
        self,
        bucket: str,
        open_transport: Callable[[Checksums], Transport],
        objects: ObjectOptions,
        given: Mapping[str, Any],
    ) -> None:
        """``given``: further parameters of the requests that create an object."""
        self._bucket = bucket
        self._checksums = Checksums(objects.checksum, required=objects.checksum_required)
        self._transport = open_transport(self._checksums)
        self._new = {**given, **objects.new}
        self._objects = objects
        self.examiner = Examiner(self.call, objects)
        """Reads the properties of objects."""

    def call(self, method: str, what: str, *, bucket_level: bool = False, **arguments: Any) -> dict[str, Any]:
        """Make a request in boto's names. Raises `StoreError`; ``bucket_level``: "not found" can only mean the bucket."""
        try:
            answer = self.attempt(method, **arguments)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, "s3", bucket_level=bucket_level) from None
        require_s3(method, answer, what)
        return Answered(answer, what)

    def list_part(
        self, asked: Mapping[str, str], read: Callable[[bytes], ListedPart | None], what: str
    ) -> ListedPart | None:
        """Make a LIST request the short way; returns None if only `call` can make it. Raises `StoreError`."""
        if self._objects.always:
            return None
        try:
            return self._transport.list_part(self._bucket, asked, read)
        except Exception as exc:  # noqa: BLE001
            raise failure(exc, what, "s3", bucket_level=True) from None

    def attempt(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Make a request that may set tags or an ACL: without them if the server refuses. Raises the library's errors."""
        kept = [name for name in arguments if name.startswith(("Tagging", "Grant"))]
        try:
            answer = self._with_checksum(method, **arguments)
        except Exception as exc:
            if not kept or status_of(exc)[0] not in (400, 403, 405, 501):
                raise
        else:
            self.examiner.note_set(kept)
            return answer
        # To write an object may be allowed where to set its tags or its ACL is not.
        answer = self._with_checksum(method, **{name: value for name, value in arguments.items() if name not in kept})
        self.examiner.note_refused(kept)
        return answer

    def _with_checksum(self, method: str, **arguments: Any) -> dict[str, Any]:
        checksums = self._checksums
        sent = checksums.sent
        try:
            return self._send(method, **arguments)
        except Exception as exc:
            if not checksums.yields(method, sent, exc):
                raise
        try:
            answer = self._send(method, **arguments)
        except Exception as exc:
            checksums.settle(sent, exc)
            raise
        checksums.settle(sent, None)
        return answer

    def _send(self, method: str, **arguments: Any) -> dict[str, Any]:
        objects = self._objects
        new = self._new if method in _MAKES_OBJECTS else {}
        keyed = objects.keyed if method in _TOUCHES_CONTENT else {}
        source = objects.keyed_source if method in _COPIES else {}
        always = objects.always
        if method.startswith("get_bucket_"):
            always.pop("RequestPayer", None)  # the owner pays for these
        return self._transport.call(method, Bucket=self._bucket, **{**always, **keyed, **source, **new, **arguments})

    def close(self) -> None:
        """Free connections."""
        self._transport.close()
