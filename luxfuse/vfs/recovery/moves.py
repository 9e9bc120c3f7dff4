"""Finishes the moves of the last run: objects that are still under the old key are copied and removed.

Copying is repeated, so a move that was cut short anywhere ends as if it had not been.
"""

from __future__ import annotations

import contextlib
import logging

import msgspec

from luxfuse.core import names as naming
from luxfuse.errors import NotFound, VersionChanged
from luxfuse.index.journal import FileRecord, Journal, OperationRecord
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import ABSENT, Kind, ObjectInfo, WriteMode
from luxfuse.understore.retrying import Store
from luxfuse.vfs.moves.operations import MOVE, MOVE_DIRECTORY, SWAP
from luxfuse.vfs.recovery.in_store import has_other
from luxfuse.vfs.recovery.places import JournalPlaces

log = logging.getLogger(__name__)

KEYS = {"source", "target", "replaced"}
"""The arguments of moves that are keys."""


Move = tuple[str, str]
"""The old and the new key, or prefix."""


class UnfinishedMoves:
    """The moves that the journal has."""

    def __init__(self, *, places: JournalPlaces, journal: Journal, staging: Staging, store: Store) -> None:
        self._places = places
        self._journal = journal
        self._staging = staging
        self._store = store

    async def finish(self) -> int:
        """Finish all; returns how many there were. Raises `StoreError` if one cannot be finished now."""
        finished = 0
        # The moves that an exchange is made of before the exchange, which makes those that are missing.
        for number, operation in sorted(self._journal.operations.items(), key=lambda item: (item[1].kind == SWAP, item[0])):
            await self._finish(number, operation)
            reached("recover.moved")
            self._rekey(operation)
            self._journal.drop_operation(number)
            finished += 1
        return finished

    async def _finish(self, number: int, operation: OperationRecord) -> None:
        arguments = operation.arguments
        log.info("finishing the %s of %s", operation.kind, ", ".join(f"{k} {v!r}" for k, v in arguments.items()))
        if operation.kind == MOVE:
            await self._move(arguments["source"], arguments["target"], arguments["version"] or None)
            if arguments.get("replaced"):
                await self._delete([arguments["replaced"]])
        elif operation.kind == MOVE_DIRECTORY:
            await self._move_below(arguments["source"], arguments["target"])
        elif operation.kind == SWAP:
            await self._exchange(number, operation)
            return
        for name in KEYS & arguments.keys():
            if arguments[name]:
                self._places.forget_listing(arguments[name])

    async def _exchange(self, number: int, operation: OperationRecord) -> None:
        """Make the moves that are missing, then exchange the names: both keep their inodes, as programs have them."""
        arguments = operation.arguments
        first, second, between = arguments["first"], arguments["second"], arguments["between"]
        new_keys = _like(first, second), _like(second, first)
        steps = ((first, between), (second, new_keys[0]), (between, new_keys[1]))
        for step in range(operation.step, len(steps)):
            source, target = steps[step]
            operation.step = step  # the next restart must not move back an object that was moved already
            self._journal.put_operation(number, operation)
            await self._journal.commit()
            if source.endswith("/"):
                await self._move_below(source, target)
            else:
                await self._move(source, target, None)
        found = [None if key.endswith("/") else await self._find(key) for key in new_keys]
        inodes = int(arguments.get("inode", 0)), int(arguments.get("other", 0))
        self._places.exchange((first, second), between, inodes)
        for key, info, inode in zip(new_keys, found, reversed(inodes), strict=True):
            self._places.settle(key, inode, info)
        reached("recover.exchanged")

    async def _find(self, key: str) -> ObjectInfo | None:
        try:
            return await self._store.head(key)
        except NotFound:
            return None  # it is of this machine only

    def _rekey(self, operation: OperationRecord) -> None:
        """Give records of the journal that a move is about their new keys; those that it has replaced are gone."""
        arguments = operation.arguments
        moves: tuple[Move, ...]
        if operation.kind == SWAP:
            first, second = arguments["first"], arguments["second"]
            moves = ((first, _like(second, first)), (second, _like(first, second)))
        else:
            source, target = arguments["source"], arguments["target"]
            moves = ((source, target),)
            self._journal.drop_delete(target)
            for number, record in list(self._journal.files.items()):
                if record.key in (target, arguments.get("replaced")) and str(record.inode) != arguments.get("inode"):
                    self._journal.drop_file(number)
                    self._staging.remove(number)
        for number, record in list(self._journal.files.items()):
            rekeyed = _rekeyed(record, operation.kind, moves)
            if rekeyed is not record:
                self._journal.put_file(number, rekeyed)

    async def move_what_was_not_closed(self) -> None:
        """Move the objects of files that were renamed while they were open for writing: those are not uploaded."""
        for number, record in list(self._journal.files.items()):
            if record.closed or record.stored is None:
                continue
            if await has_other(self._store, record):
                self._journal.drop_file(number)
                continue
            source, version = record.stored
            await self._move(source, record.key, version or None)
            self._journal.put_file(number, msgspec.structs.replace(record, expect=None, doomed=False, stored=None))
            self._journal.drop_delete(source)
            self._places.forget_listing(source)
            reached("recover.moved-unclosed")

    async def _move(self, source: str, target: str, version: str | None) -> None:
        try:
            info = await self._store.head(source)
            if version is None or info.version == version:
                await self._store.copy(source, target, version=info.version, size=info.size)
                reached("recover.copied")
                await self._delete([source])
        except (NotFound, VersionChanged):
            return  # it was finished

    async def _move_below(self, source: str, target: str) -> None:
        keys = []
        async with contextlib.aclosing(self._store.list_all(source)) as pages:
            async for page in pages:
                for info in sorted(page.objects, key=lambda i: (not i.key.endswith("/"), i.key)):
                    keys.append(info.key)
                    to = target + info.key[len(source) :]
                    await self._store.copy(info.key, to, version=info.version or None, size=info.size)
                    reached("recover.copied")
        await self._delete(keys)

    async def _delete(self, keys: list[str]) -> None:
        for error in (await self._store.delete(sorted(keys, reverse=True))).values():
            raise error


def _rekeyed(record: FileRecord, kind: str, moves: tuple[Move, ...]) -> FileRecord:
    """Return a record with its keys after moves of a kind; itself if they are not about it."""
    record = _with_new_key(record, kind, moves)
    for source, target in moves:
        if record.inherits and _is_in(record.inherits, source):
            record = msgspec.structs.replace(record, inherits=target + record.inherits[len(source) :])
            break
    for source, target in moves:
        if record.stored is not None and _is_in(record.stored[0], source):
            record = msgspec.structs.replace(record, stored=(target + record.stored[0][len(source) :], ""))
            break
    return record


def _with_new_key(record: FileRecord, kind: str, moves: tuple[Move, ...]) -> FileRecord:
    for source, target in moves:
        if kind == MOVE and record.kind is Kind.SPECIAL and record.key == source:
            return record  # the whiteout that the move left: it moves objects of the store only
        keys = (source,) if kind == SWAP else (source, target)
        at = next((key for key in keys if _is_in(record.key, key)), None)
        if at is not None:  # copying again gave a new version to an object that has its new key already
            never = record.mode is WriteMode.MUST_CACHE or record.kind is Kind.SPECIAL
            expect = ABSENT if never and record.expect == ABSENT else None
            return msgspec.structs.replace(record, key=target + record.key[len(at) :], expect=expect)
    return record


def _is_in(key: str, moved: str) -> bool:
    return key == moved or (moved.endswith("/") and key.startswith(moved))


def _like(key: str, other: str) -> str:
    """Return ``key`` in the form (directory, symlink, file) of ``other``, which an exchange brings there."""
    plain = key.rstrip("/").removesuffix(naming.SYMLINK_SUFFIX)
    suffix = "/" if other.endswith("/") else naming.SYMLINK_SUFFIX if other.endswith(naming.SYMLINK_SUFFIX) else ""
    return plain + suffix
