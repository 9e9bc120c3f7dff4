"""The membership protocol's datagrams, and the state that two nodes exchange.

A datagram is a byte with the version of the format, and a msgpack array of a body and a list of updates. Updates are
encoded once, when they are made, and joined to many bodies; so the array around them is written here by hand.
Fields may be added at the end of each struct: a node that does not know them skips them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from luxfuse.core.members import MemberState, NodeInfo

T = TypeVar("T")
VERSION = 1
PAYLOAD_BYTES = 1200
"""The most that a datagram carries, before it is sealed."""
INFO_BYTES = 512
BROADCAST_BYTES = 1000
INCARNATIONS = 1 << 39
LIFE_BITS = 24
"""Broadcasts of one life of a node; the bits above are the incarnation that it began with."""

Incarnation = Annotated[int, msgspec.Meta(ge=0, le=INCARNATIONS)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Are you ``target``, and there? ``source`` asks. ``view``: a digest of what it believes, see ``mark``."""

    number: Number
    target: Name
    source: Name
    view: Number = 0


class Ack(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``source`` is there. ``view``: as in Ping."""

    number: Number
    source: Name
    view: Number = 0


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Please ping ``target`` for ``source``."""

    number: Number
    target: Name
    source: Name


class Nack(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """I did as asked, and have heard nothing so far."""

    number: Number


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Only updates."""


class Tell(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A word of ``source`` to the receiver alone."""

    source: Name
    payload: bytes


Body = Ping | Ack | Ask | Nack | Gossip | Tell


class Alive(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A node lives, and says this of itself."""

    incarnation: Incarnation
    info: NodeInfo


class Claim(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``by`` says that a node is suspect, dead or has left, in this incarnation of it."""

    name: Name
    incarnation: Incarnation
    state: MemberState
    by: Name


class News(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A broadcast of ``origin``."""

    origin: Name
    sequence: Number
    payload: bytes


Update = Alive | Claim | News


class Datagram(msgspec.Struct, frozen=True, array_like=True):
    """A body and the updates that ride on it."""

    body: Body
    updates: list[Update]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """All that a node knows of one: ``info`` is what it said in ``info_incarnation``, which may be older than its state."""

    info: NodeInfo
    info_incarnation: Incarnation
    incarnation: Incarnation
    state: MemberState


class State(msgspec.Struct, frozen=True, array_like=True):
    """All that ``source`` knows, itself included."""

    source: Name
    records: list[Record]


class OldVersion(ValueError):
    """The message is of another version of the format."""


_encoder = msgspec.msgpack.Encoder()
_datagrams = msgspec.msgpack.Decoder(Datagram)
_states = msgspec.msgpack.Decoder(State)
_VERSION = bytes([VERSION])
_HEAD = bytes([VERSION, 0x92])
_LIST_BYTES = 3

encode = _encoder.encode
"""Of a body or an update."""


def room(body: bytes) -> int:
    """Bytes left for updates beside an encoded body."""
    return PAYLOAD_BYTES - len(_HEAD) - len(body) - _LIST_BYTES


def join(body: bytes, updates: Sequence[bytes]) -> bytes:
    """A datagram of an encoded body and encoded updates."""
    count = len(updates)
    listed = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return b"".join((_HEAD, body, listed, *updates))


def read_datagram(message: bytes) -> Datagram:
    """Decode a datagram; raises OldVersion, or ValueError for what is malformed."""
    return _read(_datagrams, message)


def write_state(state: State) -> bytes:
    """Encode what two nodes exchange."""
    return _VERSION + _encoder.encode(state)


def read_state(message: bytes) -> State:
    """Decode what two nodes exchange; raises OldVersion, or ValueError for what is malformed."""
    return _read(_states, message)


def _read(decoder: msgspec.msgpack.Decoder[T], message: bytes) -> T:
    if not message:
        raise ValueError("empty message")
    if message[0] != VERSION:
        raise OldVersion(f"version {message[0]} of the membership protocol; this node speaks {VERSION}")
    try:
        return decoder.decode(memoryview(message)[1:])
    except RecursionError:
        raise ValueError("nested too deeply") from None


def mark(name: str, incarnation: int) -> int:
    """A node's share in the digest of a view, which is the exclusive or of those of all that live in it; 63 bits."""
    digest = hashlib.blake2b(f"{incarnation} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def acceptable(info: NodeInfo) -> bool:
    """Whether a node may say this of itself: it has a name and an address, and is not too long."""
    return (
        0 < len(info.name) <= 64 and info.host != "" and 0 < info.port < 65536 and len(_encoder.encode(info)) <= INFO_BYTES
    )
