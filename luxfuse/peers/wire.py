"""The messages of nodes over TCP: HTTP/1.1, heads by h11, bodies of known length only.

A request is a POST. Its subject is its body; pages are asked for by a `PagesRequest` and come as a msgpack list of
`PageAnswer` (its length is in a header), and then the bytes of those that are `Outcome.OK`, in order and without gaps.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import h11
import msgspec

from luxfuse.core.members import Want
from luxfuse.core.spans import page_bytes, page_count
from luxfuse.errors import PeerFailed, PeerRefused, Refusal
from luxfuse.types import PAGE_BYTES, Description

PAGES_PATH = "/v1/pages"

HEAD_MAX_BYTES = 16 << 10
BODY_MAX_BYTES = 16 << 20
"""Of a control message, either way."""
MOST_WANTS = 64
MOST_PAGES = 64
"""Of one want."""
PAGES_MAX_BYTES = 64 << 20
"""Of all wants of a request."""
META_MAX_BYTES = 256 << 10
TEXT_MAX = 200
"""Characters of the reason that a refusal gives."""

LENGTH = b"content-length"
META = b"luxfuse-meta"
DESCRIPTION_MAX_BYTES = 3 << 10
"""Stores take 2 KiB of metadata."""
"""Length of the block before the bytes: the answers to wants, or what a file is sent with."""
REASON = b"luxfuse-reason"
"""Number of a `Refusal`."""

Headers = list[tuple[bytes, bytes]]


class Outcome(enum.IntEnum):
    """The outcome of a want; all but ``OK`` are `Refusal`s."""

    OK = 0
    NOT_HERE = Refusal.NOT_HERE
    CHANGED = Refusal.CHANGED
    BUSY = Refusal.BUSY
    FAILED = Refusal.FAILED


class PagesRequest(msgspec.Struct, frozen=True, array_like=True):
    """``fetch``: get what is missing from the under-store first. ``timeout_s``: it is then to say what it has."""

    wants: list[Want]
    fetch: bool
    timeout_s: float


class PageAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Whether one want is granted; then with the xxh3-64 checksums of its pages, else with a reason for people.

    ``described``: the description of the object, if the node knows it.
    """

    outcome: Outcome
    checksums: tuple[int, ...] = ()
    text: str = ""
    described: Description | None = None


class Malformed(ValueError):
    """The other side does not keep to the protocol. The text is for the log."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request or an answer: a path or a status, headers with lower-case names, and what came behind it."""

    target: str
    status: int
    headers: dict[bytes, bytes]
    rest: bytes

    def number(self, name: bytes, most: int) -> int:
        """Return a header's value, 0 if it is not there. Raises `Malformed` if it is no number, or above ``most``."""
        value = self.headers.get(name, b"0")
        if not value.isdigit() or len(value) > 12 or int(value) > most:
            raise Malformed(f"{name.decode()} is not a number up to {most}")
        return int(value)


class Exchange:
    """The heads of one request and its answer, on either side. Bodies do not go through it."""

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self._h11 = h11.Connection(role, max_incomplete_event_size=HEAD_MAX_BYTES)

    def request(self, path: str, host: str, headers: Headers) -> bytes:
        """Return the head of a request to send."""
        host_header = (b"host", host.encode("latin-1", "replace"))
        return self._h11.send(h11.Request(method="POST", target=path, headers=[host_header, *headers])) or b""

    def answer(self, status: int, headers: Headers) -> bytes:
        """Return the head of an answer to send; also possible after `Malformed`."""
        return self._h11.send(h11.Response(status_code=status, headers=headers)) or b""

    def feed(self, data: bytes) -> Head | None:
        """Take what was received, b"" at the end of the stream; returns the head when it is there. Raises `Malformed`."""
        try:
            self._h11.receive_data(data)
            event = self._h11.next_event()
        except h11.RemoteProtocolError as exc:
            raise Malformed(str(exc)) from None
        if event is h11.NEED_DATA:
            return None
        rest = self._h11.trailing_data[0]
        if isinstance(event, h11.Request):
            if event.method != b"POST":
                raise Malformed("the method is not POST")
            return Head(event.target.decode("latin-1"), 0, _headers(event.headers), rest)
        if isinstance(event, h11.Response):
            return Head("", event.status_code, _headers(event.headers), rest)
        raise Malformed("no head of a request or an answer")


def _headers(found: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers = dict(found)
    if b"transfer-encoding" in headers or LENGTH not in headers:
        raise Malformed("the length of the body is not given")
    return headers


def want_bytes(want: Want) -> int:
    """Return how many bytes the pages of a want have. Raises `Malformed` for one that cannot be granted."""
    pages = page_count(want.size)
    if not (len(want.source) == 8 and 0 < want.count <= MOST_PAGES and 0 <= want.first <= pages - want.count):
        raise Malformed(f"pages {want.first} + {want.count} of {want.size} bytes cannot be asked for")
    last = want.first + want.count - 1
    return (want.count - 1) * PAGE_BYTES + page_bytes(last, want.size)


def wants_bytes(wants: Sequence[Want]) -> list[int]:
    """Return the bytes of each want of a request. Raises `Malformed` if they are more than one may have."""
    lengths = [want_bytes(want) for want in wants]
    if not 0 < len(lengths) <= MOST_WANTS or sum(lengths) > PAGES_MAX_BYTES:
        raise Malformed(f"{len(lengths)} wants with {sum(lengths)} bytes in one request")
    return lengths


_request_decoder = msgspec.msgpack.Decoder(PagesRequest)
_answers_decoder = msgspec.msgpack.Decoder(list[PageAnswer])
_encoder = msgspec.msgpack.Encoder()


def encoded(message: PagesRequest | list[PageAnswer]) -> bytes:
    """Return a message as bytes."""
    return _encoder.encode(message)


def decode_request(body: bytes | bytearray) -> tuple[PagesRequest, list[int]]:
    """Return a request for pages and the bytes of each of its wants. Raises `Malformed`."""
    try:
        request = _request_decoder.decode(body)
    except msgspec.MsgspecError as exc:
        raise Malformed(str(exc)) from None
    return request, wants_bytes(request.wants)


def decode_answers(meta: bytes | bytearray, wants: Sequence[Want]) -> list[PageAnswer]:
    """Return the answers to ``wants``. Raises `Malformed`."""
    try:
        answers = _answers_decoder.decode(meta)
    except msgspec.MsgspecError as exc:
        raise Malformed(str(exc)) from None
    if len(answers) != len(wants):
        raise Malformed(f"{len(answers)} answers to {len(wants)} wants")
    for want, answer in zip(wants, answers, strict=True):
        if answer.outcome is Outcome.OK and len(answer.checksums) != want.count:
            raise Malformed(f"{len(answer.checksums)} checksums for {want.count} pages")
    return answers


def description(answer: PageAnswer, want: Want) -> Description | None:
    """Return what came with the pages of a want, if it is of that object."""
    if answer.described is None:
        return None
    info, age_s = answer.described
    same = (info.key, info.version, info.size) == (want.key, want.version, want.size)
    return answer.described if same and 0 <= age_s < math.inf else None


def bounded(described: Description | None) -> Description | None:
    """Return what goes with pages, None if there is none or it takes too much room."""
    if described is None or len(_encoder.encode(described)) > DESCRIPTION_MAX_BYTES:
        return None
    return described


def refused(answer: PageAnswer) -> PeerRefused:
    """Return what a want that was not granted means."""
    return PeerRefused(Refusal(answer.outcome), answer.text[:TEXT_MAX])


REFUSAL_STATUS = {Refusal.NOT_HERE: 404, Refusal.CHANGED: 409, Refusal.BUSY: 503, Refusal.FAILED: 500}


def raise_unless_ok(head: Head, body: bytes | bytearray, node: str) -> None:
    """Raise what an answer other than 200 means: `PeerRefused` if it gives a reason, else `PeerFailed`."""
    if head.status == 200:
        return
    text = bytes(body[:TEXT_MAX]).decode("utf-8", "replace")
    text = "".join(c if c.isprintable() else " " for c in text)
    reason = head.headers.get(REASON, b"")
    if reason.isdigit() and int(reason) in list(Refusal):
        after = head.headers.get(b"retry-after", b"")
        raise PeerRefused(
            Refusal(int(reason)), text, retry_after_s=float(after) if after.isdigit() and len(after) < 6 else None
        )
    raise PeerFailed(f"{node} answered with status {head.status}: {text}")
