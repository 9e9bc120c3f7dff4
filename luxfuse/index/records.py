"""Records of the journal, each of one change that is not in the under-store yet."""

from __future__ import annotations

import msgspec
import xxhash

from luxfuse.index.entries import Attributes
from luxfuse.types import Kind, WriteMode


class FileRecord(msgspec.Struct, array_like=True):
    """A file, directory, symlink or special file that was changed here; its id names the staging file.

    ``key``: object key in the under-store, "d/" for directories, "x.rclonelink" for symlinks. ``expect``: version
    believed to be in the store under the key; "" = absent; None = unknown. Content below ``base_size`` whose staging
    pages are holes comes from the object ``base_key`` of ``base_version``; 0: staging is complete. ``stamp``: mtime in
    ns of the staging file when it was last noted. ``closed``: closed or fsynced at least once: uploaded after a crash.
    ``content``: False if the content was what the store has
    when this was noted (a program may have written to the staging file since: it then has another mtime). ``since_s``:
    wall-clock time of the first change. ``doomed``: the store's object under the key was removed before this was made.
    ``sending``: mtime in ns and size of content on its way to the store that ``stamp`` and ``size`` do not describe.
    ``stored``: the (key, version) under which the store has the content that was promised last, where that is another key.
    ``generation``: of what was promised last, counted from 1 where other nodes hold replicas of it; ``holders``: those that
    were asked to. ``inherits``: key of the object that it is, "" if the store has none; what others set on that stays.
    ``sent``: further contents, by mtime in ns and size, that the store may have got without an answer.
    ``emptied``: an open has emptied the file since it was closed: the content in the journal counts, and not the staging
    file's.
    """

    key: str
    kind: Kind
    mode: WriteMode
    inode: int
    attributes: Attributes | None
    expect: str | None
    base_key: str
    base_version: str
    base_size: int
    size: int
    stamp: int
    closed: bool
    content: bool
    since_s: float
    has_inline: bool = False
    doomed: bool = False
    stored: tuple[str, str] | None = None
    sending: tuple[int, int] | None = None
    generation: int = 0
    holders: tuple[str, ...] = ()
    inherits: str = ""
    emptied: bool = False
    sent: tuple[tuple[int, int], ...] = ()


class DeleteRecord(msgspec.Struct, array_like=True):
    """An object to be deleted. ``after``: id of a file whose upload must come first, 0: none.

    Where ``version`` is None as uploads had no answer: the object is of the version ``was`` ("": none), or has one of the
    contents ``sent``, by mtime in ns and size.
    """

    version: str | None
    after: int
    since_s: float
    was: str = ""
    sent: tuple[tuple[int, int], ...] = ()


class OperationRecord(msgspec.Struct, array_like=True):
    """A change of several steps, and how many are done."""

    kind: str
    arguments: dict[str, str]
    step: int
    since_s: float


class PartRecord(msgspec.Struct, array_like=True):
    """Bytes [start, end) of a file that the store has as a part of an open upload; ``checksums``: of their pages."""

    number: int
    start: int
    end: int
    tag: str
    checksums: tuple[int, ...]


class UploadRecord(msgspec.Struct):
    """An open multipart upload: the metadata that it was begun with, and parts that have arrived, by number."""

    metadata: dict[str, str] = {}
    parts: dict[int, PartRecord] = {}


encode = msgspec.msgpack.Encoder().encode


class Decode:
    """Decoders of the values of the journal."""

    file = msgspec.msgpack.Decoder(FileRecord).decode
    delete = msgspec.msgpack.Decoder(tuple[str, DeleteRecord]).decode
    operation = msgspec.msgpack.Decoder(OperationRecord).decode
    upload = msgspec.msgpack.Decoder(tuple[str, str]).decode
    part = msgspec.msgpack.Decoder(PartRecord).decode
    metadata = msgspec.msgpack.Decoder(dict[str, str]).decode


def key_of(*parts: str) -> bytes:
    """Return what stands for keys of the store in keys of LMDB."""
    return xxhash.xxh3_128_digest("\0".join(parts).encode("utf-8", "surrogateescape"))
