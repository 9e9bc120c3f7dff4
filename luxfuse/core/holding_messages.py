"""The questions of nodes about each other's holdings, and the answers. A byte with the version of the format, and msgpack.

`Since` is answered by `Changes`, or, where the log does not reach back so far, by `Sums`; `Buckets` by `Content`. Fields
may be added at the end of each struct: a node that does not know them skips them.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from luxfuse.core.holdings import BUCKETS, ENTRY_BYTES, LOG_ID_BYTES, Mark

VERSION = 1
HEAD = b"L"
"""First byte of a head among what is gossiped: where a node's log ends."""
MOST_ENTRIES = 80_000
"""Entries or changes of one answer, which is below 1 MiB so."""
MOST_BYTES = 1 << 20

LogId = Annotated[bytes, msgspec.Meta(min_length=LOG_ID_BYTES, max_length=LOG_ID_BYTES)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Packed = Annotated[bytes, msgspec.Meta(max_length=MOST_ENTRIES * ENTRY_BYTES)]
Sum = Annotated[int, msgspec.Meta(ge=0)]


class Since(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Asks for the changes after number ``sequence`` of this log; b"": of none, that is, for the sums."""

    log_id: Annotated[bytes, msgspec.Meta(max_length=LOG_ID_BYTES)]
    sequence: Number


class Buckets(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Asks for the entries of these buckets (ascending), after the entry ``after``."""

    buckets: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=BUCKETS)]], msgspec.Meta(max_length=BUCKETS)]
    after: Annotated[bytes, msgspec.Meta(max_length=ENTRY_BYTES)]


class Changes(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Changes up to number ``sequence``; the last one is ``head``, and all together then have the sum ``total``."""

    log_id: LogId
    sequence: Number
    head: Number
    total: Sum
    changes: Packed


class Sums(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The sums of all buckets when the last change was number ``head``."""

    log_id: LogId
    head: Number
    sums: Annotated[bytes, msgspec.Meta(min_length=8 * BUCKETS, max_length=8 * BUCKETS)]


class Content(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Entries of the buckets asked for, ascending, up to ``until``; b"": all of them."""

    log_id: LogId
    entries: Packed
    until: Annotated[bytes, msgspec.Meta(max_length=ENTRY_BYTES)]


Request = Since | Buckets
Answer = Changes | Sums | Content
_T = TypeVar("_T")
_encode = msgspec.msgpack.Encoder().encode
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """Return a message as it is sent."""
    return bytes((VERSION,)) + _encode(message)


def decode_request(data: bytes) -> Request:
    """Return a request. Raises ValueError if it is none."""
    return _decoded(_requests, data)


def decode_answer(data: bytes) -> Answer:
    """Return an answer. Raises ValueError if it is none."""
    answer = _decoded(_answers, data)
    packed = answer.changes if isinstance(answer, Changes) else answer.entries if isinstance(answer, Content) else b""
    if len(packed) % ENTRY_BYTES:
        raise ValueError("a part of an entry")
    return answer


def _decoded(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    if not data or len(data) > MOST_BYTES:
        raise ValueError(f"a message of {len(data)} bytes")
    if data[0] != VERSION:
        raise ValueError(f"version {data[0]} of the messages, we know {VERSION}")
    try:
        return decoder.decode(memoryview(data)[1:])
    except msgspec.MsgspecError as exc:
        raise ValueError(str(exc)) from None


def encode_head(mark: Mark) -> bytes:
    """Return what is gossiped of the end of a log."""
    return HEAD + mark.log_id + mark.sequence.to_bytes(8, "big")


def decode_head(payload: bytes) -> Mark:
    """Return the end of a node's log. Raises ValueError if it is none."""
    if len(payload) != len(HEAD) + LOG_ID_BYTES + 8 or not payload.startswith(HEAD):
        raise ValueError("not the end of a log")
    return Mark(payload[1 : 1 + LOG_ID_BYTES], int.from_bytes(payload[1 + LOG_ID_BYTES :], "big"))
