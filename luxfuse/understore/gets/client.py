"""Small whole objects, and parts of others, past the clients of a store, in C: see ``pool.c`` for how.

Those clients take the interpreter lock several times for a request, and so do checksum and cache file; here all of a batch
is done without it. Only the plainest success counts: each other answer is left to the driver's other client, which asks
once more and knows what it means. Failures without an answer, and answers that the server is busy, are told at once: they
are tried again later in any case.

What differs between stores is said by a `Dialect`; what opens the door comes with each batch, as its credentials.

The extension is built only where libcurl's headers are (``libcurl4-openssl-dev``); without it all goes another way.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from luxfuse import __version__
from luxfuse.core.vain import InVain
from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.types import ObjectInfo
from luxfuse.understore.failures import from_status
from luxfuse.understore.locations import has_odd_segment
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from luxfuse.understore.small_files import MOST_BYTES, Answer, ArrivedFile, WantedFile

try:
    from luxfuse.understore.gets import _gets
except ImportError:
    _gets = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

AS_USUAL = Answer()
MOST_FILES = 64

IS_BUILT = _gets is not None
NOT_BUILT = "luxfuse was built without libcurl (Debian: libcurl4-openssl-dev, libssl-dev and libxxhash-dev)"
BUSY = (429, 503)
ETAG = re.compile(r'"[!-~]{1,200}"')
_REFUSED = (401, 403)
_OF_OBJECTS = (404, 412)
"""Answers that say something of an object, and nothing of the way to ask."""
_PLAIN = re.compile(r"[A-Za-z0-9._~/-]*")
_NO_TEXT = re.compile("[\udc80-\udcff]")
"""Bytes of a path that are no UTF-8: C is given UTF-8."""
_MOST_SECRET = 400
_PORTS = {"http": 80, "https": 443}

UNRESOLVED, TIMED_OUT = 6, 28
CONNECTION_FAILURES = {
    UNRESOLVED: "the endpoint's name does not resolve",
    7: "the connection failed",
    18: "the connection broke",
    TIMED_OUT: "timed out",
    52: "the connection broke",
    55: "the connection broke",
    56: "the connection broke",
}
"""By the numbers of libcurl. Others, those about certificates among them, the other client is to find out about."""

Signing = tuple[str, str, str | None]
"""Key, secret and token, by which requests are signed as AWS does."""


class Sent(NamedTuple):
    """What requests are sent with; headers are "name: value"."""

    query: str | None
    headers: tuple[str, ...]


Credentials = Signing | Sent | None


class Elsewhere(Exception):
    """The door is not such that requests can be made here."""


class Door:
    """What opens a bucket: this one is open to everybody. Thread-safe."""

    def __call__(self) -> Credentials:
        """Return what the next requests are made with. Raises `StoreError` where that cannot be had, and `Elsewhere`."""
        return None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is known that requests cannot be made here for now. Does not wait."""
        return False

    def accepted(self) -> None:
        """Take note that the store has answered with what was asked for."""

    def refused(self) -> None:
        """Take note that the store has refused it: why, the other client tells."""


class Dialect(NamedTuple):
    """What a family of stores calls what all have; header names in lower case but for ``condition``."""

    family: str
    metadata: str
    """So begin the headers with user metadata."""
    condition: str = "If-Match"
    """The header that names the version that is wanted."""
    version: str = "etag"
    """The header that tells the version of what comes."""
    versions: re.Pattern[str] = ETAG
    """Versions that can be asked for."""
    describes: bool = True
    """Whether what comes with content describes the object as listings do."""
    region: str = ""
    """Requests are signed for it, if they are."""


class _Left(threading.local):
    """Small files that a thread has just been left with: when it asks for them as usual, that is not tried here again."""

    def __init__(self) -> None:
        self.keys: set[str] = set()


class Gets:
    """Fetches small objects of one bucket, and parts of others. Thread-safe."""

    def __init__(
        self,
        dialect: Dialect,
        url: str,
        prefix: str,
        door: Door,
        *,
        bundle: str,
        timeout_s: float,
        most: int,
    ) -> None:
        """``url``: of the bucket, one that `is_plain_url`; ``prefix``: of all keys. ``most``: requests at once."""
        self._dialect = dialect
        self._prefix = prefix
        self.door = door
        self._gets_in_vain = InVain()
        self._refusals = InVain()
        self._left = _Left()
        parts = urlsplit(url)
        assert parts.hostname is not None
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
        self._tls = parts.scheme == "https"
        self._pool = _gets.Pool(
            url=f"{parts.scheme}://{host}{port}{parts.path}",
            path=parts.path,
            host=f"{host}{port}",
            region=dialect.region,
            condition=dialect.condition,
            version=dialect.version,
            metadata=dialect.metadata,
            agent=f"luxfuse/{__version__}",
            bundle=bundle,
            connect_ms=math.ceil(1000 * min(CONNECT_TIMEOUT_S, timeout_s)),
            timeout_ms=math.ceil(1000 * timeout_s),
            silence_s=math.ceil(min(READ_TIMEOUT_S, timeout_s)),
            most=most,
        )

    def fetch(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        """See `SmallFiles.fetch_small`. Raises `StoreError` where there are no credentials."""
        answers = [AS_USUAL] * len(files)
        if not self.is_useful:
            return answers
        self._left.keys = {file.key for file in files}
        plain = [n for n, file in enumerate(files) if self._is_plain(file)][:MOST_FILES]
        try:
            secrets = self._secrets() if plain else None
        except Elsewhere:
            if not self.door.is_elsewhere:  # which has no pause of its own
                self._was_in_vain(files[0].key)
            plain = []
        if not plain:
            return answers
        wanted = [(self._prefix + files[n].key, *files[n][1:]) for n in plain]
        try:
            results = self._pool.fetch(wanted, secrets, abandoned)
        except MemoryError:
            log.warning("small files are fetched as others are for now: no memory, or libcurl fails")
            return answers
        for n, result in zip(plain, results, strict=True):
            answers[n] = self._answer(files[n], result)
        self._learn(files[plain[0]].key, [(answers[n], result[1]) for n, result in zip(plain, results, strict=True)])
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
        if not 0 < size <= _gets.MOST_PART_BYTES or has_odd_segment(key) or not self._dialect.versions.fullmatch(version):
            return None
        now_s = time.monotonic()
        if self._gets_in_vain.gives_up(key, now_s) or self._refusals.gives_up_all(now_s):
            return None
        try:
            answer = self._pool.read(self._prefix + key, version, start, size, self._secrets())
        except (MemoryError, ValueError, Elsewhere):  # ValueError: no text of C
            return None
        outcome, status, code = answer[:3]
        if outcome == _gets.GET_DONE:
            self._gets_in_vain.end()
            self._of_use()
            body, total, modified_s, metadata = answer[4:]  # type: ignore[misc]
            return ObjectInfo(key, total, version, modified_s * 10**9, metadata), memoryview(body)
        if outcome == _gets.GET_FAILED and (text := CONNECTION_FAILURES.get(code)):
            raise StoreUnavailable(f"{what}: {text}")
        if status in BUSY:
            raise from_status(status, what, family=self._dialect.family)
        if status in _REFUSED:
            self.door.refused()
            self._was_in_vain(key)
        if outcome != _gets.GET_ANSWERED or status < 400:
            self._gets_in_vain.note(key, time.monotonic())
        return None

    @property
    def describes(self) -> bool:
        """Whether the descriptions of objects that come are to be believed."""
        return self._dialect.describes

    @property
    def has_tls(self) -> bool:
        """Whether requests are encrypted."""
        return self._tls

    @property
    def is_useful(self) -> bool:
        """Whether requests are made here now, and not all by the other client. Does not wait."""
        return not (self.door.is_elsewhere or self._refusals.gives_up_all(time.monotonic()))

    def _learn(self, key: str, results: Sequence[tuple[Answer, object]]) -> None:
        """Take note of a batch, the answers of which are given with their status: of use is one in which anything arrived.

        Nothing is learnt of failures without an answer, of a busy server, and of objects that are gone or others.
        """
        if any(answer.arrived is not None for answer, _ in results):
            self._of_use()
            return
        if any(status in _REFUSED for _, status in results):
            self.door.refused()
        if any(answer.error is None and status not in _OF_OBJECTS for answer, status in results):
            self._was_in_vain(key)

    def _of_use(self) -> None:
        self._refusals.end()
        self.door.accepted()

    def _was_in_vain(self, key: str) -> None:
        if self._refusals.note(key, time.monotonic()):
            log.info("files are fetched by the other client for now: the store has refused what was asked for here")

    def _secrets(self) -> Credentials:
        """Return the credentials for the next requests. Raises `StoreError` where there are none, and `Elsewhere`."""
        secrets = self.door()
        if secrets is not None and len(secrets) == 3 and max(map(len, secrets[:2])) > _MOST_SECRET:
            raise Elsewhere
        return secrets

    def _is_plain(self, file: WantedFile) -> bool:
        return (
            0 < file.size <= MOST_BYTES
            and not has_odd_segment(file.key)
            and self._dialect.versions.fullmatch(file.version) is not None
            and (file.path is None or _NO_TEXT.search(file.path) is None)
        )

    def _answer(self, file: WantedFile, result: Sequence[object]) -> Answer:
        outcome, status, code, seconds = result[:4]
        assert isinstance(seconds, float)
        assert isinstance(status, int)
        if outcome == _gets.GET_DONE:
            body, modified_s, metadata, sums, stamp, number, fd, errno, opened = result[4:]
            info = None
            if self._dialect.describes:
                info = ObjectInfo(file.key, file.size, file.version, modified_s * 10**9, metadata)  # type: ignore[operator, arg-type]
            return Answer(seconds, ArrivedFile(info, body, sums, stamp, number, fd, errno, opened))  # type: ignore[arg-type]
        if outcome == _gets.GET_ABANDONED:
            return Answer(error=StoreError("nobody waits for it any more"))
        what = f"GET {file.key!r}"
        if outcome == _gets.GET_FAILED:
            text = CONNECTION_FAILURES.get(code)  # type: ignore[call-overload]
            return Answer(seconds, error=StoreUnavailable(f"{what}: {text}") if text else None)
        error = from_status(status, what, family=self._dialect.family) if status >= 400 else None
        return Answer(seconds, error=error if isinstance(error, StoreUnavailable) else None)


def is_plain_url(url: str) -> bool:
    """Whether the address of a bucket is one that C can make addresses of objects from."""
    parts = urlsplit(url)
    return "@" not in parts.netloc and not parts.query and _PLAIN.fullmatch(parts.path) is not None


def read_by(
    gets: Gets | None, key: str, start: int, end: int, version: str, on_described: Callable[[ObjectInfo], object] | None
) -> memoryview | None:
    """Read as `UnderStore.read` does, by ``gets``; None: it is to be read by the other client of the driver."""
    part = None if gets is None else gets.read(key, start, end, version)
    if gets is None or part is None:
        return None
    if on_described is not None and gets.describes:
        on_described(part[0])
    return part[1]


class FetchesByGets:
    """The `SmallFiles` of a driver that has `Gets`, or none."""

    _gets: Gets | None

    @property
    def fetches_small(self) -> bool:
        gets = self._gets
        return gets is not None and gets.is_useful

    def fetch_small(self, files: Sequence[WantedFile], abandoned: bytearray) -> list[Answer]:
        gets = self._gets
        return [AS_USUAL] * len(files) if gets is None else gets.fetch(files, abandoned)


def allow(descriptors: int) -> None:
    """Let the idle connections to an under-store take so many; and no more requests to it for content be made at once."""
    if _gets is not None:
        _gets.allow(descriptors)


def release_memory() -> None:
    """Give back the memory that is kept for bodies and that nobody uses."""
    if _gets is not None:
        _gets.release()
