"""Requests to S3 past obstore and botocore, in C: `understore.gets`, and besides HEADs, LISTs and any others.

HEADs are made here for keys that obstore cannot name, as are those of all markers ("dir/"), and LISTs
that may begin anywhere, so that neither needs botocore, which takes 0.2 s of processor time and more to open. Any other
request, with a body if it has one, is made as it is told (`requests`, for `s3.native` and `s3.small_puts`). Of the rest,
only what every S3 understands is spoken: `refusal` says when a setting needs more, and each answer but the plainest success
is left to the other clients. That the server has no object to describe is told at once.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from luxfuse.core.units import YES
from luxfuse.core.vain import InVain
from luxfuse.errors import StoreUnavailable
from luxfuse.types import Buffer, ObjectInfo
from luxfuse.understore.base import ListedPart
from luxfuse.understore.failures import from_status
from luxfuse.understore.gets.client import (
    BUSY,
    CONNECTION_FAILURES,
    ETAG,
    NOT_BUILT,
    TIMED_OUT,
    UNRESOLVED,
    Dialect,
    Door,
    Elsewhere,
    Gets,
    Signing,
    is_plain_url,
)
from luxfuse.understore.locations import Location
from luxfuse.understore.object_options import S3_NAMES, SYNONYMS, ObjectOptions
from luxfuse.understore.s3.access import OPTIONS as ACCESS_OPTIONS
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.credentials import S3Credentials
from luxfuse.understore.s3.pages import EXPRESS, listing_of, part_of, query_of
from luxfuse.understore.variables import variables

try:
    from luxfuse.understore.gets import _gets
except ImportError:
    _gets = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_KNOWN = ACCESS_OPTIONS | S3_NAMES | SYNONYMS.keys() | {"allow_http", "virtual_hosted_style_request"}
_VARIABLES = (
    "AWS_ENDPOINT", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_S3_EXPRESS", "AWS_PROXY_URL", "AWS_PROXY_CA_CERTIFICATE",
    "AWS_ALLOW_INVALID_CERTIFICATES", "AWS_HTTP2_ONLY", "AWS_UNSIGNED_PAYLOAD",
)  # fmt: skip
"""Variables of obstore's own about how requests are made."""
DIALECT = Dialect("s3", "x-amz-meta-")


class Asked(NamedTuple):
    """A request of any kind of the bucket, or of the object ``key``.

    ``query`` is encoded and in the order of names, or None, the headers' names are in lower case; ``hash``: that of the
    body as it is signed, None for its SHA-256. ``brief``: it is given up as early as a GET.
    """

    method: str
    key: str
    query: str | None
    headers: Mapping[str, str]
    body: Buffer
    hash: str | None = None
    brief: bool = False


class Told(NamedTuple):
    """What came of a request: status, headers, whose names are in lower case, and body of the answer; None: no answer.

    ``code``: of libcurl, why there is none.
    """

    seconds: float
    code: int
    answer: tuple[int, dict[str, str], bytes] | None


class SigningDoor(Door):
    """Keys to sign with, which are renewed elsewhere."""

    def __init__(self, credentials: S3Credentials) -> None:
        self._credentials = credentials

    def __call__(self) -> Signing:
        return self._credentials.current()[:3]


class DirectGets(Gets):
    """Fetches objects of one bucket, describes any, and lists. Thread-safe."""

    def __init__(
        self, location: Location, options: Mapping[str, str], access: S3Access, timeout_s: float, most: int
    ) -> None:
        """``most``: requests at once. There must be no `refusal`."""
        self._in_vain = {method: InVain() for method in ("HEAD", "LIST")}
        assert access.trust.bundle is not None
        super().__init__(
            DIALECT._replace(region=access.region),
            _url(location.bucket, options, access),
            location.prefix,
            Door() if access.credentials is None else SigningDoor(access.credentials),
            bundle=access.trust.bundle,
            timeout_s=timeout_s,
            most=most,
        )

    def head(self, key: str) -> ObjectInfo | None:
        """Describe an object; None: the answer is to be had elsewhere. Raises `StoreError`."""
        full = self._prefix + key
        result = self._ask("HEAD", f"HEAD {key!r}", full, full) if full else None
        if result is None:
            return None
        size, version, modified_s, metadata = result
        assert isinstance(version, str)
        if ETAG.fullmatch(version) is None:
            self._was_of_no_use("HEAD", full)
            return None
        self._in_vain["HEAD"].end()
        return ObjectInfo(key, size, version, modified_s * 10**9, metadata)  # type: ignore[arg-type, operator]

    def list_page(self, prefix: str, after: str, token: str) -> ListedPart | None:
        """See `ListsFromKeys.list_page`; None: the answer is to be had elsewhere. Raises `StoreError`."""
        own = self._prefix + prefix
        asked = listing_of(own, after and self._prefix + after, token)
        try:
            query = query_of(asked)
            result = self._ask("LIST", f"LIST {prefix!r}", query, own)
        except UnicodeEncodeError:
            return None
        part = None
        if result is not None:
            assert isinstance(result[0], bytes)
            part = part_of(result[0], own, len(self._prefix))
            if part is not None:
                self._in_vain["LIST"].end()
            else:
                self._was_of_no_use("LIST", own)
        return part

    def request(
        self, method: str, key: str, query: str | None, headers: Mapping[str, str], body_hash: str, body: Buffer
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Make one request as `requests` does; returns status, headers and body, None: only another client can make it.

        Raises OSError where no answer comes.
        """
        found: list[Told] = []
        asked = Asked(method, key, query, headers, body, body_hash)
        self.requests([asked], lambda answers: found.extend(told for _, told in answers))
        if not found:
            return None
        if found[0].answer is None:
            _raise_failure(found[0].code)
        return found[0].answer

    def requests(self, asked: Sequence[Asked], tell: Callable[[list[tuple[int, Told]]], object]) -> None:
        """Make requests at once, `small_puts.MOST_PUTS` at most, and tell what came of them by their numbers, as they end.

        What is not told only another client can make, or say why it fails. Raises `StoreError` where there are no
        credentials; none was made then.
        """
        wanted = [
            (*each[:3], tuple(f"{name}: {value}" for name, value in each.headers.items()), each.hash, each.brief, each.body)
            for each in asked
        ]
        with suppress(MemoryError, ValueError, Elsewhere):  # ValueError: no text of C, or too many headers
            self._pool.requests(
                wanted, self._secrets(), lambda answers: tell([(number, _told(*each)) for number, each in answers])
            )

    def _ask(self, method: str, what: str, asked: str, about: str) -> Sequence[object] | None:
        """Make a request about a key or prefix; returns what was asked for, or None if something else was the answer."""
        if self._in_vain[method].gives_up(about, time.monotonic()):
            return None
        try:
            secrets = self._secrets()
            answer = self._pool.head(asked, secrets) if method == "HEAD" else self._pool.list(asked, secrets)
        except (MemoryError, ValueError, Elsewhere):  # ValueError: no text of C
            return None
        outcome, status, code = answer[:3]
        if outcome == _gets.GET_DONE:
            return answer[4:]
        if outcome == _gets.GET_FAILED and (text := CONNECTION_FAILURES.get(code)):
            raise StoreUnavailable(f"{what}: {text}")
        if status in BUSY:
            raise from_status(status, what, family="s3")
        if method == "HEAD" and status == 404:
            self._in_vain[method].end()
            raise from_status(status, what, family="s3")
        self._was_of_no_use(method, about)
        return None

    def _was_of_no_use(self, method: str, about: str) -> None:
        self._in_vain[method].note(about, time.monotonic())


def open_direct(
    location: Location, options: Mapping[str, str], objects: ObjectOptions, access: S3Access, timeout_s: float, most: int
) -> DirectGets | None:
    """Open direct GETs, if they can be used; ``most``: requests at once, 0: they are not wanted."""
    if not most:
        return None
    if reason := refusal(location, options, objects, access):
        log.info("files are fetched by obstore: %s", reason)
        return None
    return DirectGets(location, options, access, timeout_s, most)


def refusal(  # noqa: PLR0911 (a reason each)
    location: Location, options: Mapping[str, str], objects: ObjectOptions, access: S3Access
) -> str | None:
    """Say why a bucket is not read directly, or None if it is."""
    if _gets is None:
        return NOT_BUILT
    if unknown := sorted(options.keys() - _KNOWN):
        return f"the storage option {unknown[0]}"
    if named := [name for name in _VARIABLES if variables().get(name)]:
        return f"the variable {named[0]}"
    if objects.customer_key or objects.requester_pays or objects.bucket_owner:
        return "options that each request has to repeat"
    if access.trust.bundle is None:
        return "certificates are not verified"
    if access.reach().proxy:
        return "there is a proxy"
    if location.bucket.endswith(EXPRESS):
        return "a directory bucket"
    if not is_plain_url(_url(location.bucket, options, access)):
        return "an unusual endpoint, or name of the bucket"
    return None


def _raise_failure(code: int) -> None:
    """Raise the OSError for a request to which no answer came, by the number of libcurl, if it is one of those known."""
    if code == TIMED_OUT:
        raise TimeoutError
    if code == UNRESOLVED:
        raise socket.gaierror
    if code in CONNECTION_FAILURES:
        raise ConnectionError


def _told(outcome: int, status: int, code: int, seconds: float, head: bytes = b"", body: bytes = b"") -> Told:
    return Told(seconds, code, (status, _headers_of(head), body) if outcome == _gets.GET_DONE else None)


def _headers_of(head: bytes) -> dict[str, str]:
    """Return the headers of an answer's head as it came; of those that come twice, the values with a comma between."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _url(bucket: str, options: Mapping[str, str], access: S3Access) -> str:
    """Return the address of the bucket, as obstore makes it."""
    in_host = options.get("virtual_hosted_style_request", "").strip().lower() in YES
    if access.endpoint:
        endpoint = access.endpoint.rstrip("/")
        return endpoint if in_host else f"{endpoint}/{bucket}"
    service = f"s3.{access.region}.amazonaws.com"
    return f"https://{bucket}.{service}" if in_host else f"https://{service}/{bucket}"
