"""Finishes the moves of the last run: here at once, in the store as soon as that lets us.

Here means: names, and the keys in the journal. Until the store has made a move its names wait (`vfs.unfinished`), and
nothing at or below its keys is pushed or removed; everything else goes on. The journal has the move until then, and says
that it is made here: an exchange of keys must not be made twice.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from luxfuse.cache.recovered import Recovered
from luxfuse.core.writeback import LONGEST_OUTAGE_RETRY_S, URGENT_RETRY_S
from luxfuse.errors import LuxError, Unforeseen
from luxfuse.index.journal import Journal, OperationRecord
from luxfuse.index.names import Names
from luxfuse.steps import reached
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind, ObjectInfo
from luxfuse.understore.retrying import Store
from luxfuse.vfs.dirty import Dirty, DirtyEntries
from luxfuse.vfs.frozen import meet
from luxfuse.vfs.moves.noted import Over, newer
from luxfuse.vfs.moves.operations import MOVE, SWAP, Place
from luxfuse.vfs.namespace import Namespace
from luxfuse.vfs.recovery.contents import JournalContents
from luxfuse.vfs.recovery.objects import MovedObjects
from luxfuse.vfs.recovery.places import JournalPlaces
from luxfuse.vfs.recovery.rekeying import is_in, keys_of, moves_of, rekeyed
from luxfuse.vfs.unfinished import Wait
from luxfuse.vfs.writeback import WriteBack

log = logging.getLogger(__name__)

MADE_HERE = "made-here"
"""Argument of an operation whose names and keys are moved."""
INTERRUPTED = "a rename that was interrupted and is not finished yet"
FIRST_PAUSE_S = 0.5
"""Before moves that the store has not made are tried again; doubled each time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Move:
    """A move that the store has not finished. ``places``: its old and new names; ``inodes``: what moved, by new keys."""

    number: int
    operation: OperationRecord
    places: list[Place]
    inodes: dict[str, int]
    wait: Wait
    frozen: contextlib.ExitStack


class UnfinishedMoves:
    """The moves that the journal has."""

    def __init__(
        self,
        *,
        namespace: Namespace,
        names: Names,
        places: JournalPlaces,
        entries: DirtyEntries,
        journal: Journal,
        staging: Staging,
        contents: JournalContents,
        store: Store,
        writeback: WriteBack,
        recovered: Recovered,
        nursery: trio.Nursery,
    ) -> None:
        self._namespace = namespace
        self._names = names
        self._places = places
        self._entries = entries
        self._journal = journal
        self._staging = staging
        self._contents = contents
        self._store = store
        self._writeback = writeback
        self._nursery = nursery
        self._objects = MovedObjects(journal, store, recovered)
        self._back = trio.Event()
        self._unmade: list[_Move] = []
        self.take_up_rest: Callable[[], Awaitable[None]]
        """Takes up what of the journal had to wait for a move that the store has made now; before its names are let go."""

    def waits(self, key: str) -> bool:
        """Whether the store may have what belongs to a key under another one yet."""
        return any(meet(key, other) for move in self._unmade for other in keys_of(move.operation))

    async def finish(self, patience_s: float) -> int:
        """Make all of them here, and begin to make them in the store. Returns how many there were.

        Waits until the store has made each, or failed to, but no longer than ``patience_s``: then it goes on behind.
        """
        # The moves that an exchange is made of before the exchange, which makes those that are missing.
        records = sorted(self._journal.operations.items(), key=lambda item: (item[1].kind == SWAP, item[0]))
        moves = [self._make_here(number, operation) for number, operation in records]
        moves += [self._make_here(*noted) for noted in self._note_moves_of_what_was_not_closed()]
        self._unmade = list(moves)
        if moves:
            reached("recover.moved-here")
            tried = trio.Event()
            self._nursery.start_soon(self._make_in_store, moves, tried)
            with trio.move_on_after(patience_s):
                await tried.wait()
        return len(moves)

    # -- here

    def _make_here(self, number: int, operation: OperationRecord) -> _Move:
        """Move the names of an operation, and the keys of what is in the journal, unless that is done; no wait in it."""
        arguments = operation.arguments
        log.info("finishing the %s of %s", operation.kind, ", ".join(f"{k} {v!r}" for k, v in arguments.items()))
        inodes = self._move_names(operation)
        if MADE_HERE not in arguments:
            self._rekey(operation)
            operation = msgspec.structs.replace(operation, arguments={**arguments, MADE_HERE: "yes"})
            self._journal.put_operation(number, operation)
        keys = keys_of(operation)
        places = [self._places.place(key) for key in sorted(keys)]
        for place in places:
            self._namespace.hold(None, *place)
        frozen = contextlib.ExitStack()
        frozen.enter_context(self._writeback.frozen.freeze(*keys)).stick(INTERRUPTED)
        return _Move(number, operation, places, inodes, self._namespace.unfinished.begin(places), frozen)

    def _move_names(self, operation: OperationRecord) -> dict[str, int]:
        """Give the names what they stand for now, as far as the index has not done that; returns the inodes by new keys."""
        arguments = operation.arguments
        if operation.kind == SWAP:
            pair = int(arguments.get("inode", 0)), int(arguments.get("other", 0))
            self._places.exchange((arguments["first"], arguments["second"]), arguments["between"], pair)
            inodes = dict(zip((target for _, target in moves_of(operation)), pair, strict=True))
        else:
            inode = int(arguments.get("inode") or 0)
            self._places.move(arguments["source"], arguments["target"], inode)
            inodes = {arguments["target"]: inode}
        self._namespace.moved(*(inode for key, inode in inodes.items() if key.endswith("/")))
        return inodes

    def _rekey(self, operation: OperationRecord) -> None:
        """Give records of the journal that a move is about their new keys; those that it has replaced are gone."""
        arguments = operation.arguments
        if operation.kind != SWAP:
            target = arguments["target"]
            self._journal.drop_delete(target)
            for number, record in list(self._journal.files.items()):
                if record.key in (target, arguments.get("replaced")) and str(record.inode) != arguments.get("inode"):
                    self._journal.drop_file(number)
                    self._staging.discard(number)
        for number, record in list(self._journal.files.items()):
            new = rekeyed(record, operation)
            if new is not record:
                self._journal.put_file(number, new)

    def _note_moves_of_what_was_not_closed(self) -> list[tuple[int, OperationRecord]]:
        """Have the objects of files moved that were renamed while they were open for writing: those are not uploaded.

        So are those of which the content is not here any more.
        """
        noted = []
        for number, record in list(self._journal.files.items()):
            if record.stored is None or (record.closed and not self._contents.is_gone(number, record)):
                continue
            (source, version), target = record.stored, record.key
            arguments = {"source": source, "target": target, "version": version, "replaced": "", "inode": str(record.inode)}
            sent = (*record.sent, (record.stamp, record.size), *([record.sending] if record.sending else []))
            arguments |= {**Over(record.expect).noted(), **newer(sent)}
            self._journal.put_file(number, msgspec.structs.replace(record, expect=None, doomed=False, stored=None))
            self._journal.drop_delete(source)
            operation = OperationRecord(MOVE, {**arguments, MADE_HERE: "yes"}, 0, time.time())
            noted.append((self._journal.new_id(), operation))
            self._journal.put_operation(*noted[-1])
        return noted

    # -- in the store

    async def _make_in_store(self, moves: Sequence[_Move], tried: trio.Event) -> None:
        """Make moves in the store, patiently, and let go of their names. ``tried``: set when each was tried once."""
        pause_s = FIRST_PAUSE_S
        self._store.presence.on_back.append(self._try_now)
        self._namespace.unfinished.on_wanted.append(self._try_now)
        while True:
            self._back = trio.Event()  # before they are tried: what calls for another try meanwhile is not lost
            moves = await self._make_as_many_as_can_be(moves)
            tried.set()
            if not moves:
                return
            urgent = self._writeback.pace.urgent or not self._store.reachable
            pause_s = min(pause_s, URGENT_RETRY_S if urgent else LONGEST_OUTAGE_RETRY_S)
            with trio.move_on_after(pause_s):
                await self._back.wait()
            pause_s *= 2

    def _try_now(self) -> None:
        self._back.set()

    async def _make_as_many_as_can_be(self, moves: Sequence[_Move]) -> list[_Move]:
        """Make moves in their order; returns those that have failed, and those about the keys of such."""
        left: list[_Move] = []
        for move in moves:
            keys = keys_of(move.operation)
            if any(meet(key, other) for earlier in left for other in keys_of(earlier.operation) for key in keys):
                left.append(move)
                if move.wait.error is not None:
                    self._namespace.unfinished.failed(move.wait, move.wait.error)
            elif (error := await self._make(move)) is not None:
                if move.wait.error is None:
                    log.warning(
                        "a rename that was interrupted cannot be finished yet, and its names (%s) wait: %s",
                        ", ".join(map(repr, sorted(keys))), error,
                    )  # fmt: skip
                self._namespace.unfinished.failed(move.wait, error)
                left.append(move)
        return left

    async def _make(self, move: _Move) -> LuxError | OSError | None:
        """Make a move in the store; returns the error if that lets us not."""
        try:
            if move not in self._unmade:
                self._unmade.append(move)
            copies = await self._objects.make(move.number, move.operation)
            asked_s = self._namespace.now_s()
            found = {key: await self._objects.find(key) for key in move.inodes if not key.endswith("/")}
            self._unmade.remove(move)
            await self.take_up_rest()
            await self._look_at_what_is_only_described(move)
            self._let_go(move, found, copies, asked_s)
        except (LuxError, OSError) as exc:
            return exc
        except Exception as exc:
            log.exception("finishing a rename failed in an unexpected way")
            return Unforeseen(f"internal error ({type(exc).__name__}: {exc}), see the log")
        return None

    def _let_go(
        self, move: _Move, found: dict[str, ObjectInfo | None], copies: dict[str, ObjectInfo], asked_s: float
    ) -> None:
        """The store has the move: its names are what it says, and everything may be asked and done again."""
        unfinished = self._namespace.unfinished
        unfinished.end(move.wait)
        for key, inode in move.inodes.items():
            info, copy = found.get(key), copies.get(key)
            copied = copy is not None and info is not None and copy.version == info.version
            self._places.settle(key, inode, info, asked_s, copied=copied or move.operation.kind == SWAP)
        for place in move.places:
            self._names.listings.forget(place[0])
            self._namespace.have_looked_up(*place)  # it was told that the rename failed
            entry = self._names.get(*place)
            if not unfinished.covers(*place) and (entry is None or self._entries.get(entry.inode) is None):
                self._namespace.settle(None, *place)
        self._journal.drop_operation(move.number)
        move.frozen.close()
        reached("recover.moved")

    async def _look_at_what_is_only_described(self, move: _Move) -> None:
        """Files of which only the attributes changed are other versions now: else a push would find them replaced."""
        seen: set[Dirty] = set()
        while left := [d for d in self._entries if d not in seen and _is_only_described(d, move)]:
            seen.update(left)
            for dirty in left:
                info = await self._objects.find(dirty.key)
                place = dirty.place
                entry = self._names.get(*place) if place is not None else None
                if info is not None and place is not None and entry is not None and entry.inode == dirty.inode:
                    entry.version = info.version
                    self._names.put(*place, entry)
                    dirty.stored.expects(info.version)


def _is_only_described(dirty: Dirty, move: _Move) -> bool:
    """Whether a dirty entry that is part of a move is an object of the store with other attributes."""
    described = dirty.source is None and not dirty.target and dirty.kind in (Kind.FILE, Kind.SYMLINK)
    return described and dirty.place is not None and any(is_in(dirty.key, key) for key in move.inodes)
