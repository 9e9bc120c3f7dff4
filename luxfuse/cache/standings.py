"""Which objects of one cache directory go first: by the eviction policy, the rules, and the copies of other nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from luxfuse.cache.placing import Copies, Holder, Rules
from luxfuse.core.eviction import EASY, LAST, PLAIN, Grown, Policy, Spared, Standing
from luxfuse.core.ledger import allocated_bytes
from luxfuse.index.directory_order import DirectoryOrder
from luxfuse.index.object_records import PINNED, ObjectRecord
from luxfuse.index.objects import Objects


class Wishes(Protocol):
    """The wishes for the objects of a mount."""

    @property
    def rules(self) -> Rules:
        """By their keys."""

    @property
    def copies(self) -> Copies:
        """By what other nodes hold at the moment."""


class Standings:
    """The order of the objects of one directory."""

    def __init__(self, objects: Objects, number: int, policy: Policy, wishes: Wishes, holder: Holder) -> None:
        """``number``: of the directory in the index."""
        self._objects = objects
        self._number = number
        self._policy = policy
        self._wishes = wishes
        self._holder = holder
        self._order = DirectoryOrder(objects, number)
        policy.load(objects.policy_state(number))
        policy.resume(self._order, objects.highest_rank(number))

    def insert(self, oid: bytes, record: ObjectRecord, *, used: bool) -> None:
        """Give an object that comes into the directory its standing; ``used``: somebody asked for it."""
        if self._wishes.rules.is_pinned(record.key):
            record.standing = Standing(PINNED, 0)
            return
        record.standing = self._policy.on_insert(oid, allocated_bytes(record.size), self._order, used=used)

    def insert_new(self, objects: Sequence[tuple[bytes, ObjectRecord, bool]]) -> None:
        """Do so for many (id, record, whether somebody asked for it), none of which the index has."""
        order = Grown(self._order)
        is_pinned, on_insert = self._wishes.rules.is_pinned, self._policy.on_insert
        for oid, record, used in objects:
            size = allocated_bytes(record.size)
            if is_pinned(record.key):
                record.segment, record.rank = PINNED, 0
            else:
                record.segment, record.rank = on_insert(oid, size, order, used=used)
            order.add(record.segment, size)

    def use(self, oid: bytes, record: ObjectRecord) -> bool:
        """Note that an object is used; returns whether its standing has changed."""
        before = record.standing
        if before.segment == PINNED:
            return False
        record.standing = self._policy.on_use(oid, before)
        return record.standing != before

    @property
    def pinned_bytes(self) -> int:
        """Bytes of objects that are never evicted."""
        return self._objects.totals(self._number, PINNED)[0]

    def keep_policy_state(self) -> None:
        """Keep the state of the eviction policy in the index."""
        self._objects.keep_policy_state(self._number, self._policy.state())

    async def coldest(self, wanted_bytes: int, in_use: Collection[bytes] = ()) -> list[bytes]:
        """Return the objects, none of ``in_use``, that are to go first, of that size together. Raises OSError."""
        await self._objects.commit()
        order = Spared(self._order, self._ease)
        choice = self._policy.choose(order, in_use, wanted_bytes)
        self._restand(choice.moves)
        if not order.left_out:
            return choice.victims
        victims = choice.victims
        missing_bytes = wanted_bytes - order.bytes_of(victims)
        if missing_bytes > 0:
            choice = self._policy.choose(self._order, {*in_use, *victims}, missing_bytes)
            self._restand(choice.moves)
            victims += choice.victims
        else:  # so that they need not be passed over again soon
            self._restand((oid, self._policy.on_use(oid, standing)) for oid, standing in order.left_out)
        return victims

    def _ease(self, oid: bytes) -> int:
        """How readily an object goes."""
        if self._wishes.copies.counted_on(oid):
            return LAST
        return EASY if self._wishes.copies.held_elsewhere(oid) else PLAIN

    def _restand(self, moves: Iterable[tuple[bytes, Standing]]) -> None:
        moved = []
        for oid, standing in moves:
            if (record := self._holder.record_of(oid)) is not None and record.directory == self._number:
                record.standing = standing
                moved.append((oid, record))
        self._objects.save_all(moved)
