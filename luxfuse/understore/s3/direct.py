"""Small whole objects, parts of others, descriptions and listings past obstore, in C: see ``gets/pool.c`` for how.

obstore takes the interpreter lock several times for a request, and so do checksum and cache file; here all of a batch is
done without it. HEADs are made here for keys that obstore cannot name, as are those of all markers ("dir/"), and LISTs
that may begin anywhere, so that neither needs botocore, which takes 0.2 s of processor time and more to open. Any other
request, with a body if it has one, is made as it is told (`request`, for `s3.native`). Of the rest, only what
every S3 understands is spoken: `refusal` says when a setting needs more, and each answer but the plainest success is left
to the other clients, which ask once more and know what it means. Failures without an answer, answers that the server is
busy, and that it has no object to describe, are told at once: the first are tried again later in any case.

The extension is built only where libcurl's headers are (``libcurl4-openssl-dev``); without it all goes through obstore.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from luxfuse import __version__
from luxfuse.core.units import YES
from luxfuse.core.vain import InVain
from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.types import Buffer, ObjectInfo
from luxfuse.understore.base import ListedPart
from luxfuse.understore.failures import from_status
from luxfuse.understore.locations import Location, has_odd_segment
from luxfuse.understore.object_options import S3_NAMES, SYNONYMS, ObjectOptions
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from luxfuse.understore.s3.access import OPTIONS as ACCESS_OPTIONS
from luxfuse.understore.s3.access import S3Access
from luxfuse.understore.s3.pages import EXPRESS, listing_of, part_of, query_of
from luxfuse.understore.small_files import MOST_BYTES, Answer, ArrivedFile, WantedFile
from luxfuse.understore.variables import variables

try:
    from luxfuse.understore.s3 import _gets
except ImportError:
    _gets = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

AS_USUAL = Answer()
MOST_FILES = 64

_KNOWN = ACCESS_OPTIONS | S3_NAMES | SYNONYMS.keys() | {"allow_http", "virtual_hosted_style_request"}
_VARIABLES = (
    "AWS_ENDPOINT", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_S3_EXPRESS", "AWS_PROXY_URL", "AWS_PROXY_CA_CERTIFICATE",
    "AWS_ALLOW_INVALID_CERTIFICATES", "AWS_HTTP2_ONLY", "AWS_UNSIGNED_PAYLOAD",
)  # fmt: skip
"""Variables of obstore's own about how requests are made."""
_PLAIN = re.compile(r"[A-Za-z0-9._~/-]*")
_VERSION = re.compile(r'"[!-~]{1,200}"')
_NO_TEXT = re.compile("[\udc80-\udcff]")
"""Bytes of a path that are no UTF-8: C is given UTF-8."""
_MOST_SECRET = 400
_BUSY = (429, 503)
_PORTS = {"http": 80, "https": 443}

UNRESOLVED, TIMED_OUT = 6, 28
_CONNECTION_FAILURES = {
    UNRESOLVED: "the endpoint's name does not resolve",
    7: "the connection failed",
    18: "the connection broke",
    TIMED_OUT: "timed out",
    52: "the connection broke",
    55: "the connection broke",
    56: "the connection broke",
}
"""By the numbers of libcurl. Others, those about certificates among them, obstore is to find out about."""


class _Left(threading.local):
    """Small files that a thread has just been left with: when it asks for them as usual, that is not tried here again."""

    def __init__(self) -> None:
        self.keys: set[str] = set()


class DirectGets:
    """Fetches small objects of one bucket, describes any, and lists. Thread-safe."""

    def __init__(
        self, location: Location, options: Mapping[str, str], access: S3Access, timeout_s: float, most: int
    ) -> None:
        """``most``: requests at once. There must be no `refusal`."""
        self._prefix = location.prefix
        self._credentials = access.credentials
        self._in_vain = {method: InVain() for method in ("HEAD", "LIST", "GET")}
        self._left = _Left()
        url = _url(location.bucket, options, access)
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._tls = parts.scheme == "https"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
        assert access.trust.bundle is not None
        self._pool = _gets.Pool(
            url=f"{parts.scheme}://{host}{port}{parts.path}",
            path=parts.path,
            host=f"{host}{port}",
            region=access.region,
            agent=f"luxfuse/{__version__}",
            bundle=access.trust.bundle,
            connect_ms=math.ceil(1000 * min(CONNECT_TIMEOUT_S, timeout_s)),
            timeout_ms=math.ceil(1000 * timeout_s),
            silence_s=math.ceil(min(READ_TIMEOUT_S, timeout_s)),
            most=most,
        )

    def fetch(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        """See `SmallFiles.fetch_small`. Raises `StoreError` where there are no credentials."""
        answers = [AS_USUAL] * len(files)
        self._left.keys = {file.key for file in files}
        plain = [n for n, file in enumerate(files) if self._is_plain(file)][:MOST_FILES]
        secrets = self._secrets()
        if not plain or _too_long(secrets):
            return answers
        wanted = [(self._prefix + files[n].key, *files[n][1:]) for n in plain]
        try:
            results = self._pool.fetch(wanted, secrets, abandoned)
        except MemoryError:
            log.warning("small files are fetched by obstore for now: no memory, or libcurl fails")
            return answers
        for n, result in zip(plain, results, strict=True):
            answers[n] = _answer(files[n], result)
        self._left.keys = {
            file.key for file, (_, arrived, error) in zip(files, answers, strict=True) if arrived is None and error is None
        }
        return answers

    def read(self, key: str, start: int, end: int, version: str) -> tuple[ObjectInfo, memoryview] | None:
        """Return bytes [start, end) of an object, and its description; None: they are to be had elsewhere.

        The buffer has `checksums`, see `UnderStore.read`. Raises `StoreError`.
        """
        if key in self._left.keys:
            self._left.keys.discard(key)
            return None
        size, what = end - start, f"GET {key!r} [{start}, {end})"
        if not 0 < size <= _gets.MOST_PART_BYTES or has_odd_segment(key) or _VERSION.fullmatch(version) is None:
            return None
        secrets = self._secrets()
        if self._in_vain["GET"].gives_up(key) or _too_long(secrets):
            return None
        try:
            answer = self._pool.read(self._prefix + key, version, start, size, secrets)
        except (MemoryError, ValueError):  # ValueError: no text of C
            return None
        outcome, status, code = answer[:3]
        if outcome == _gets.GET_DONE:
            self._in_vain["GET"].end()
            body, total, modified_s, metadata = answer[4:]  # type: ignore[misc]
            return ObjectInfo(key, total, version, modified_s * 10**9, metadata), memoryview(body)
        if outcome == _gets.GET_FAILED and (text := _CONNECTION_FAILURES.get(code)):
            raise StoreUnavailable(f"{what}: {text}")
        if status in _BUSY:
            raise from_status(status, what, family="s3")
        if outcome != _gets.GET_ANSWERED or status < 400:
            self._in_vain["GET"].note(key)
        return None

    def head(self, key: str) -> ObjectInfo | None:
        """Describe an object; None: the answer is to be had elsewhere. Raises `StoreError`."""
        full = self._prefix + key
        result = self._ask("HEAD", f"HEAD {key!r}", full, full) if full else None
        if result is None:
            return None
        size, version, modified_s, metadata = result
        assert isinstance(version, str)
        if _VERSION.fullmatch(version) is None:
            return None
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
                self._in_vain["LIST"].note(own)
        return part

    def request(
        self, method: str, key: str, query: str | None, headers: Mapping[str, str], body_hash: str, body: Buffer
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Make any request of the bucket, or of the object ``key``; returns status, headers and body.

        The headers' names are in lower case. None: only another client can make it, or tell why it fails. Raises
        `StoreError` where there are no credentials, and OSError where no answer comes.
        """
        secrets = self._secrets()
        if _too_long(secrets):
            return None
        lines = tuple(f"{name}: {value}" for name, value in headers.items())
        try:
            answer = self._pool.request(method, key, query, lines, body_hash, body, secrets)
        except (MemoryError, ValueError):  # ValueError: no text of C, or too many headers
            return None
        outcome, status, code = answer[:3]
        if outcome != _gets.GET_DONE:
            _raise_failure(code)
            return None
        head, told = answer[4], answer[5]  # type: ignore[misc]
        return status, _headers_of(head), told

    def _ask(self, method: str, what: str, asked: str, about: str) -> Sequence[object] | None:
        """Make a request about a key or prefix; returns what was asked for, or None if something else was the answer."""
        secrets = self._secrets()
        if self._in_vain[method].gives_up(about) or _too_long(secrets):
            return None
        try:
            answer = self._pool.head(asked, secrets) if method == "HEAD" else self._pool.list(asked, secrets)
        except (MemoryError, ValueError):  # ValueError: no text of C
            return None
        outcome, status, code = answer[:3]
        if outcome == _gets.GET_DONE:
            if method == "HEAD":
                self._in_vain[method].end()
            return answer[4:]
        if outcome == _gets.GET_FAILED:
            if text := _CONNECTION_FAILURES.get(code):
                raise StoreUnavailable(f"{what}: {text}")
            return None
        if status in _BUSY:
            raise from_status(status, what, family="s3")
        if method == "HEAD" and status == 404:
            self._in_vain[method].end()
            raise from_status(status, what, family="s3")
        self._in_vain[method].note(about)
        return None

    @property
    def has_tls(self) -> bool:
        """Whether requests are encrypted."""
        return self._tls

    def _secrets(self) -> tuple[str, str, str | None] | None:
        return None if self._credentials is None else self._credentials.current()[:3]

    @staticmethod
    def _is_plain(file: WantedFile) -> bool:
        return (
            0 < file.size <= MOST_BYTES and not has_odd_segment(file.key) and _VERSION.fullmatch(file.version) is not None
            and (file.path is None or _NO_TEXT.search(file.path) is None)
        )  # fmt: skip


def release_memory() -> None:
    """Give back the memory that is kept for bodies and that nobody uses."""
    if _gets is not None:
        _gets.release()


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
        return "luxfuse was built without libcurl (Debian: libcurl4-openssl-dev, libssl-dev and libxxhash-dev)"
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
    parts = urlsplit(_url(location.bucket, options, access))
    if "@" in parts.netloc or not _PLAIN.fullmatch(parts.path):
        return "an unusual endpoint, or name of the bucket"
    return None


def _raise_failure(code: int) -> None:
    """Raise the OSError for a request to which no answer came, by the number of libcurl, if it is one of those known."""
    if code == TIMED_OUT:
        raise TimeoutError
    if code == UNRESOLVED:
        raise socket.gaierror
    if code in _CONNECTION_FAILURES:
        raise ConnectionError


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


def _too_long(secrets: tuple[str, str, str | None] | None) -> bool:
    return secrets is not None and max(map(len, secrets[:2])) > _MOST_SECRET


def _answer(file: WantedFile, result: Sequence[object]) -> Answer:
    outcome, status, code, seconds = result[:4]
    assert isinstance(seconds, float)
    assert isinstance(status, int)
    if outcome == _gets.GET_DONE:
        body, modified_s, metadata, sums, stamp, number, fd, errno, opened = result[4:]
        info = ObjectInfo(file.key, file.size, file.version, modified_s * 10**9, metadata)  # type: ignore[operator, arg-type]
        return Answer(seconds, ArrivedFile(info, body, sums, stamp, number, fd, errno, opened))  # type: ignore[arg-type]
    if outcome == _gets.GET_ABANDONED:
        return Answer(error=StoreError("nobody waits for it any more"))
    what = f"GET {file.key!r}"
    if outcome == _gets.GET_FAILED:
        text = _CONNECTION_FAILURES.get(code)  # type: ignore[call-overload]
        return Answer(seconds, error=StoreUnavailable(f"{what}: {text}") if text else None)
    error = from_status(status, what, family="s3") if status >= 400 else None
    return Answer(seconds, error=error if isinstance(error, StoreUnavailable) else None)
