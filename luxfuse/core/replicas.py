"""The messages of nodes about written files that are to outlive their writer, and how these are named.

A *replica* is the content of a file as it was when a close or fsync was acknowledged. The file is named by its writer:
node, journal and number there. Each content that was promised, and each new key, has a *generation*, counted up in the
journal before anybody is told of it. Both together are the *write id*, which travels in the object's metadata: so a
node that meets an object in the store can tell if it is this write, an earlier or later one of the same file, or
somebody else's.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

FORMAT_VERSION = 1
WRITE_METADATA = "luxfusewrite"
"""The name of the write id in object metadata. (Azure takes letters and digits only.)"""
MOST_HOLDERS = 16
_NODE = re.compile("[0-9a-f]{16}")
_JOURNAL = re.compile("[0-9a-f]{8}")
_WRITE_ID = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{8})\.([0-9a-f]{1,16})\.([0-9a-f]{1,16})\.([0-9a-f]{12})")


class FileId(msgspec.Struct, frozen=True, array_like=True):
    """A file with changes of its own: the name of its writer, the identity of the writer's journal, its number there."""

    writer: str
    journal: str
    number: int

    @property
    def is_sound(self) -> bool:
        """Whether it is well-formed; it becomes part of the names of files."""
        return bool(_NODE.fullmatch(self.writer) and _JOURNAL.fullmatch(self.journal)) and 0 < self.number < 1 << 63


class Write(msgspec.Struct, frozen=True, array_like=True):
    """One content of a file, under one key."""

    file: FileId
    generation: int

    def text(self, key: str) -> str:
        """Return the write id as object metadata says it of the object ``key``."""
        file = self.file
        return f"{file.writer}.{file.journal}.{file.number:x}.{self.generation:x}.{_digest(key)}"


def write_of(metadata: Mapping[str, str] | None, key: str) -> Write | None:
    """Return the write that an object is of; None if none is told, or it was copied here from another key."""
    found = _WRITE_ID.fullmatch((metadata or {}).get(WRITE_METADATA, ""))
    if found is None or found[5] != _digest(key):
        return None
    return Write(FileId(found[1], found[2], int(found[3], 16)), int(found[4], 16))


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()


class Replica(msgspec.Struct, frozen=True, array_like=True):
    """A write with all that is needed to bring it to the store. ``source``: id of the under-store, 8 bytes.

    ``size`` in bytes. ``metadata``: of the object, the write id included. ``expect``: version that the store is believed
    to have under the key; "": none, None: not known. ``holders``: the nodes that are asked to hold it, in the order in
    which they take over. ``moment_s``: wall-clock time of the promise.
    """

    source: bytes
    write: Write
    key: str
    size: int
    metadata: dict[str, str]
    expect: str | None
    holders: tuple[str, ...]
    moment_s: float

    @property
    def is_sound(self) -> bool:
        """Whether a node may take it from another one."""
        return (
            self.write.file.is_sound
            and len(self.source) == 8
            and self.size >= 0
            and bool(self.key)
            and not self.key.endswith("/")
            and len(self.holders) <= MOST_HOLDERS
            and 0 < self.write.generation < 1 << 63
        )


class State(enum.IntEnum):
    """The state of a replica on a node that holds it."""

    HELD = 0
    TAKEN = 1
    """The node has begun to upload it, and ends that, though the writer comes back."""
    DONE = 2
    """The store has it."""
    KEPT = 3
    """The store has something else: the content is in the recovered directory."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of a replica. ``version``: of the object, where `State.DONE`; ``effective``: by this node's own write."""

    write: Write
    key: str
    state: State
    version: str = ""
    effective: bool = False


# -- messages; each is answered by `Answer`


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """The content that you hold of the file, of generation ``content``, has become ``replica``."""

    replica: Replica
    content: int


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """These writes, and earlier ones of the same files, need not be held."""

    writes: tuple[Write, ...]


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Asks a holder what became of files."""

    files: tuple[FileId, ...]


class Needed(msgspec.Struct, frozen=True, tag="needed"):
    """I hold these for you, or have brought them to the store: which need I not remember?"""

    source: bytes
    outcomes: tuple[Outcome, ...]


Message = Describe | Drop | Ask | Needed


class Answer(msgspec.Struct, frozen=True):
    """``refused``: why nothing was done, or "". ``outcomes``: to `Ask`. ``unneeded``: to `Needed`;
    ``wanted``: of those, what the writer has lost itself, so that the holder is to bring it to the store."""

    refused: str = ""
    outcomes: tuple[Outcome, ...] = ()
    unneeded: tuple[FileId, ...] = ()
    wanted: tuple[FileId, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_messages = msgspec.msgpack.Decoder(tuple[int, Message])
_replicas = msgspec.msgpack.Decoder(tuple[int, Replica])
_answers = msgspec.msgpack.Decoder(tuple[int, Answer])
T = TypeVar("T")


def encode(what: Message | Replica | Answer) -> bytes:
    """Return what one node tells another."""
    return _encode((FORMAT_VERSION, what))


def decode_message(data: bytes) -> Message:
    """Read a message. Raises ValueError if it is garbage, or of another version."""
    return _decode(_messages, data)


def decode_replica(data: bytes) -> Replica:
    """Read what goes before the content of a replica. Raises ValueError as `decode_message`."""
    replica = _decode(_replicas, data)
    if not replica.is_sound:
        raise ValueError("the replica makes no sense")
    return replica


def decode_answer(data: bytes) -> Answer:
    """Read an answer. Raises ValueError as `decode_message`."""
    return _decode(_answers, data)


def _decode(decoder: msgspec.msgpack.Decoder[tuple[int, T]], data: bytes) -> T:
    try:
        version, content = decoder.decode(data)
    except msgspec.MsgspecError as exc:
        raise ValueError(f"the message cannot be read: {exc}") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"the message has format {version}, this luxfuse knows {FORMAT_VERSION}")
    return content
