"""What a move of the last run means for records of the journal: their keys, and what the store has under them. Pure."""

from __future__ import annotations

import msgspec

from luxfuse.core import names as naming
from luxfuse.index.journal import FileRecord, OperationRecord
from luxfuse.types import ABSENT, Kind, WriteMode
from luxfuse.vfs.moves.operations import MOVE, SWAP

Move = tuple[str, str]
"""The old and the new key, or prefix."""


def moves_of(operation: OperationRecord) -> tuple[Move, ...]:
    """Return the moves that an operation is, as programs see it: two if it is an exchange."""
    arguments = operation.arguments
    if operation.kind != SWAP:
        return ((arguments["source"], arguments["target"]),)
    first, second = arguments["first"], arguments["second"]
    return (first, like(second, first)), (second, like(first, second))


def keys_of(operation: OperationRecord) -> set[str]:
    """Return all keys, or prefixes, that an operation is about."""
    names = ("source", "target", "replaced", "first", "second", "between")
    named = {operation.arguments[name] for name in names if operation.arguments.get(name)}
    return named | {key for move in moves_of(operation) for key in move}


def rekeyed(record: FileRecord, operation: OperationRecord) -> FileRecord:
    """Return a record with its keys after an operation; itself if that is not about it."""
    moves = moves_of(operation)
    record = _with_new_key(record, operation.kind, moves)
    for source, target in moves:
        if record.inherits and is_in(record.inherits, source):
            record = msgspec.structs.replace(record, inherits=target + record.inherits[len(source) :])
            break
    for source, target in moves:
        if record.stored is not None and is_in(record.stored[0], source):
            record = msgspec.structs.replace(record, stored=(target + record.stored[0][len(source) :], ""))
            break
    return record


def _with_new_key(record: FileRecord, kind: str, moves: tuple[Move, ...]) -> FileRecord:
    for source, target in moves:
        if kind == MOVE and record.kind is Kind.SPECIAL and record.key == source:
            return record  # the whiteout that the move left: it moves objects of the store only
        keys = (source,) if kind == SWAP else (source, target)
        at = next((key for key in keys if is_in(record.key, key)), None)
        if at is not None:  # copying again gave a new version to an object that has its new key already
            never = record.mode is WriteMode.MUST_CACHE or record.kind is Kind.SPECIAL
            expect = ABSENT if never and record.expect == ABSENT else None
            return msgspec.structs.replace(record, key=target + record.key[len(at) :], expect=expect)
    return record


def is_in(key: str, moved: str) -> bool:
    """Whether a key is the one that is moved, or below the prefix that is."""
    return key == moved or (moved.endswith("/") and key.startswith(moved))


def like(key: str, other: str) -> str:
    """Return ``key`` in the form (directory, symlink, file) of ``other``, which an exchange brings there."""
    plain = key.rstrip("/").removesuffix(naming.SYMLINK_SUFFIX)
    suffix = "/" if other.endswith("/") else naming.SYMLINK_SUFFIX if other.endswith(naming.SYMLINK_SUFFIX) else ""
    return plain + suffix
