"""The checksums that go with content to S3: which, how they are computed, and a server's refusals of them.

obstore computes CRC64NVME itself; this is for our own client, and for reading refusals of both.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from luxfuse.errors import StoreUnavailable
from luxfuse.types import Buffer
from luxfuse.understore._crc import crc32c, crc64nvme
from luxfuse.understore.library_failures import message_of, status_of
from luxfuse.understore.object_options import NO_CHECKSUM

log = logging.getLogger(__name__)

_FUNCTIONS: dict[str, tuple[Callable[[Buffer], int], int]] = {
    "CRC64NVME": (crc64nvme, 8),
    "CRC32C": (crc32c, 4),
    "CRC32": (zlib.crc32, 4),
}
CARRIERS = frozenset({"put_object", "upload_part", "create_multipart_upload", "delete_objects"})
"""The methods of a client whose requests say something about checksums."""
_WITH_BODY = ("PutObject", "UploadPart", "DeleteObjects")
_MISMATCHES = ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")


@dataclass(frozen=True, slots=True)
class Sent:
    """The checksum of requests; ``md5``: Content-MD5 with everything."""

    algorithm: str
    md5: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """The headers about checksums of one request; ``name``: that of the checksum itself, None if there is none."""

    headers: Mapping[str, str]
    name: str | None = None


class Checksums:
    """Makes the checksums of the requests of one client, and compares those that come back.

    Of one of botocore or aiobotocore by its events (`register`).
    """

    def __init__(self, algorithm: str, *, required: bool) -> None:
        """``algorithm``: one of `object_options.CHECKSUMS`, which stays if it is ``required``."""
        self.sent = Sent(algorithm)
        self._required = required
        self._warned = False

    def register(self, session: Any) -> None:
        """Hook into the events of the client that the session is going to make."""
        session.register("before-call.s3", self._add)
        session.register("after-call.s3", self._compare)

    def _add(self, model: Any, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        body = getattr(params["body"], "view", params["body"])
        added = context["luxfuse_checksum"] = self.headers(model.name, body)
        params["headers"].update(added.headers)
        if model.name not in _WITH_BODY:
            return
        if added.name is not None:
            # In botocore's words, or it would add another; and with TLS it then leaves out the SHA-256 of the body.
            checksum = {"algorithm": added.name.rpartition("-")[2], "in": "header", "name": added.name}
            context["checksum"] = {**context.get("checksum", {}), "request_algorithm": checksum}
        else:
            context.get("checksum", {}).pop("request_algorithm", None)
        context.get("checksum", {}).pop("request_algorithm_header", None)

    def headers(self, operation: str, body: Buffer) -> Added:
        """Return what goes with a request, by its name in S3's API, that has this body."""
        sent = self.sent
        known = sent.algorithm in _FUNCTIONS
        if operation == "CreateMultipartUpload" and known:
            # Of the whole object, so that its end need not list those of the parts.
            return Added({"x-amz-checksum-algorithm": sent.algorithm, "x-amz-checksum-type": "FULL_OBJECT"})
        if operation not in _WITH_BODY:
            return Added({})
        headers: dict[str, str] = {}
        name = f"x-amz-checksum-{sent.algorithm.lower()}" if known else None
        if name is not None:
            headers[name] = encoded(sent.algorithm, body)
        # Older servers want this of a bulk delete.
        if sent.md5 or operation == "DeleteObjects":
            headers["content-md5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        return Added(headers, name)

    def _compare(self, parsed: dict[str, Any], model: Any, context: Mapping[str, Any], **_: Any) -> None:
        metadata = parsed.get("ResponseMetadata", {})
        if "luxfuse_checksum" in context and metadata.get("HTTPStatusCode", 0) < 300:
            self.compare(model.name, context["luxfuse_checksum"], metadata.get("HTTPHeaders", {}))

    @staticmethod
    def compare(operation: str, added: Added, told: Mapping[str, str]) -> None:
        """Raise `StoreUnavailable` where the headers of a success tell of another checksum than was sent."""
        if added.name is None or operation == "DeleteObjects":
            return
        sent = added.headers[added.name]
        found = told.get(added.name, sent)
        if found != sent:
            raise StoreUnavailable(f"{operation}: what the store has is damaged ({added.name} is {found}, not {sent})")

    def yields(self, method: str, sent: Sent, exc: Exception) -> bool:
        """Whether a request that failed is worth another try, as something else goes with it now than was ``sent``."""
        if method not in CARRIERS:
            return False
        answer = (*status_of(exc), message_of(exc))
        if wants_md5(*answer):
            if not sent.md5:
                self.sent = Sent(self.sent.algorithm, md5=True)
            return not sent.md5
        if self._required or sent.algorithm not in _FUNCTIONS or not is_refused(*answer):
            return False
        self.sent = Sent(NO_CHECKSUM, self.sent.md5)
        return True

    def settle(self, sent: Sent, exc: Exception | None) -> None:
        """The second try succeeded, or failed with ``exc``: if for the same reason, it was not the checksum."""
        if exc is not None:
            if sent.algorithm != self.sent.algorithm and is_refused(*status_of(exc), message_of(exc)):
                self.sent = Sent(sent.algorithm, self.sent.md5)
        elif sent.algorithm != self.sent.algorithm and not self._warned:
            self._warned = True
            warn_of_refusal(sent.algorithm)


def warn_of_refusal(algorithm: str) -> None:
    """Say that uploads go without checksums from now on."""
    log.warning("the store does not take %s checksums: uploads go without, and it cannot tell if they arrive damaged",
                algorithm)  # fmt: skip


def encoded(algorithm: str, data: Buffer) -> str:
    """Return the checksum of ``data`` as headers have it."""
    function, size = _FUNCTIONS[algorithm]
    return base64.b64encode(function(data).to_bytes(size, "big")).decode()


def is_refused(status: int, code: str, text: str) -> bool:
    """Whether an answer says that the server does not know the checksum; ``text`` is its message.

    501 says so of any header: a condition may be meant as well.
    """
    if status == 501 or code == "NotImplemented":
        return True
    return status == 400 and code not in _MISMATCHES and "checksum" in text.lower() and not wants_md5(status, code, text)


def wants_md5(status: int, code: str, text: str) -> bool:
    """Whether an answer says that Content-MD5 is missing, as in buckets with Object Lock."""
    return status == 400 and code not in _MISMATCHES and "content-md5" in text.lower()
