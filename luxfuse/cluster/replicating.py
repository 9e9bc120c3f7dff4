"""Sees to it that as many nodes hold what this one holds as the rules say (`luxfuse.core.replication` decides).

All that is cached is gone through once a minute, slowly, and also when rules or members have changed. When nodes come and
go nothing is done until that has been over for `SETTLE_S`, because most of them come back, and a little later the lower
this node ranks, so that not all ask at once. Nothing is remembered: a copy that was ordered, and is not there the next
time, is ordered again, of the same node, which knows that it is on its way.

Only objects that a node holds are replicated; nothing is loaded for a rule. Versions that are known to be replaced are
left alone.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import trio

from luxfuse.cluster.holding import COMING, HELD, HOLD_PATH, MOST_WANTS, NO, HoldRequest, encode
from luxfuse.cluster.members import Members
from luxfuse.cluster.peer_source import Holders
from luxfuse.core.members import RANGE_PAGES, MemberState, NodeInfo, Want
from luxfuse.core.rendezvous import ranked
from luxfuse.core.replication import ReplicaRule, missing_copies, witnesses
from luxfuse.core.spans import page_count
from luxfuse.errors import LuxError
from luxfuse.peers.client import Rpc

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
SETTLE_S = 30.0
SETTLE_MOST_S = 300.0
"""Where nodes come and go all the time, something is done after this all the same."""
SPREAD_S = 10.0
"""By how much the last in rank is later than the first."""
SLICE = 200
"""So many ranges of an object are looked at in one go."""
HOLD_S = 10.0
MOST_REFUSING = 64
"""So many nodes may refuse in one pass; then the next one is waited for. None is asked again in the same pass."""


class HeldObject(NamedTuple):
    """An object of which this node holds whole ranges."""

    oid: bytes
    key: str
    version: str
    size: int
    ranges: Sequence[int]


class Stock(Protocol):
    """The holdings of this node, of one under-store."""

    def rule_of(self, key: str) -> ReplicaRule | None:
        """Return the rule for an object."""

    @property
    def any_rule(self) -> bool:
        """Whether there is one at all."""

    def objects(self) -> AsyncGenerator[HeldObject, None]:
        """Yield all objects that a rule speaks of, slowly."""

    async def drop(self, oid: bytes) -> bool:
        """Give an object up, unless it is in use or pinned; returns whether it was."""


@dataclass(slots=True)
class _Order:
    want: Want
    missing: int
    candidates: list[str]


@dataclass(slots=True)
class _Leaving:
    """A copy that may go if others say that they hold it."""

    oid: bytes
    asked: list[tuple[str, Want]]


@dataclass(slots=True)
class Counters:
    """Counts from the start on. ``ordered``: wants that were sent; ``taken``: those that a node took."""

    looked_at: int = 0
    ordered: int = 0
    taken: int = 0
    dropped: int = 0


class Replicating:
    """Enforces the rules of one under-store at this node."""

    def __init__(self, source: bytes, stock: Stock, members: Members, holders: Holders, rpc: Rpc) -> None:
        self._source = source
        self._stock = stock
        self._members = members
        self._holders = holders
        self._rpc = rpc
        self._wake = trio.Event()
        self._serving: dict[str, NodeInfo] = {}
        self._changed_s = self._unsettled_s = trio.current_time()
        self._refusing: set[str] = set()
        """Nodes that are full, or busy, as far as found in this pass."""
        self.counters = Counters()
        self.members_changed()

    def members_changed(self) -> None:
        """The members may be others now, or serve something else."""
        others = [member.info for member in self._members.alive() if member.state is MemberState.ALIVE]
        serving = {info.name: info for info in others if self._source in info.sources}
        serving[self._members.info.name] = self._members.info
        if serving.keys() != self._serving.keys():
            now_s = trio.current_time()
            if now_s - self._changed_s >= SETTLE_S:
                self._unsettled_s = now_s
            self._changed_s = now_s
            self._wake.set()
        self._serving = serving

    def rules_changed(self) -> None:
        """The rules are others now."""
        self._wake.set()

    async def run(self) -> None:
        """Look once a minute, and when something has changed, until cancelled."""
        while True:
            with trio.move_on_after(INTERVAL_S):
                await self._wake.wait()
            await self._settle()
            self._wake = trio.Event()
            if not self._stock.any_rule or len(self._serving) < 2:
                continue
            try:
                await self.look()
            except (LuxError, OSError) as exc:
                log.info("replicas are looked at again later: %s", exc)

    async def _settle(self) -> None:
        """Wait until the members have stayed the same for long enough; the later in rank, the longer."""
        own = self._members.info.name
        names = ranked(self._source, 0, [(name, 1) for name in self._serving])
        await trio.sleep(SPREAD_S * names.index(own) / len(names))
        while True:
            due_s = min(self._changed_s + SETTLE_S, self._unsettled_s + SETTLE_MOST_S)
            if trio.current_time() >= due_s:
                return
            await trio.sleep_until(due_s)

    # -- one pass

    async def look(self) -> None:
        """Go through all that is held once."""
        self._refusing.clear()
        orders: list[_Order] = []
        leaving: list[_Leaving] = []
        async with aclosing(self._stock.objects()) as held:
            async for obj in held:
                self.counters.looked_at += 1
                await self._consider(obj, orders, leaving)
                if len(orders) >= MOST_WANTS:
                    await self._place(orders)
                    orders = []
                if len(leaving) >= MOST_WANTS:
                    await self._leave(leaving)
                    leaving = []
        await self._place(orders)
        await self._leave(leaving)

    async def _consider(self, obj: HeldObject, orders: list[_Order], leaving: list[_Leaving]) -> None:
        rule, own = self._stock.rule_of(obj.key), self._members.info.name
        if rule is None or not obj.ranges:
            return
        holders: dict[int, set[str]] = {}
        for number in obj.ranges:
            holders[number] = {own, *self._holders.holders(obj.oid, number)}
            if len(holders) % SLICE == 0:
                await trio.lowlevel.checkpoint()
        short = [number for number, names in holders.items() if len(names & self._serving.keys()) < rule.least]
        excess = rule.most is not None and all(len(names) > rule.most for names in holders.values())
        if not short and not excess:
            return
        rank = self._ranker(obj.oid)
        for number in short:
            order = missing_copies(rule, own, holders[number], self._serving, rank)
            if order is not None:
                orders.append(_Order(self._want(obj, number), order.missing, order.candidates))
        if not short and (asked := witnesses(rule, own, holders, self._serving, rank)) is not None:
            wants = [(name, self._want(obj, number)) for name, numbers in asked.items() for number in numbers]
            leaving.append(_Leaving(obj.oid, wants))

    def _ranker(self, oid: bytes) -> Callable[[Collection[str]], list[str]]:
        """Return what brings nodes into their rank for an object."""
        order = ranked(oid, 0, [(name, info.weight) for name, info in self._serving.items()])
        place = {name: number for number, name in enumerate(order)}
        return lambda names: sorted(names, key=place.__getitem__)

    def _want(self, obj: HeldObject, number: int) -> Want:
        first = number * RANGE_PAGES
        count = min(RANGE_PAGES, page_count(obj.size) - first)
        return Want(self._source, obj.key, obj.version, obj.size, first, count)

    async def _place(self, orders: list[_Order]) -> None:
        """Have copies made: by the first candidates, and where one refuses, by the next."""
        while len(self._refusing) < MOST_REFUSING:
            asked: defaultdict[str, list[_Order]] = defaultdict(list)
            for order in orders:
                order.candidates = [name for name in order.candidates if name not in self._refusing]
                for name in order.candidates[: order.missing]:
                    asked[name].append(order)
            if not asked:
                return
            for name, some in asked.items():
                self.counters.ordered += len(some)
                answers = await self._ask(name, [order.want for order in some], fetch=True)
                for order, answer in zip(some, answers, strict=True):
                    order.candidates.remove(name)
                    if answer in (COMING, HELD):
                        order.missing -= 1
                        self.counters.taken += 1
                    else:
                        self._refusing.add(name)

    async def _leave(self, leaving: list[_Leaving]) -> None:
        """Give copies up of which enough others say that they hold them."""
        asked: defaultdict[str, list[tuple[_Leaving, Want]]] = defaultdict(list)
        for each in leaving:
            for name, want in each.asked:
                asked[name].append((each, want))
        stays: set[bytes] = set()
        for name, some in asked.items():
            answers = await self._ask(name, [want for _, want in some], fetch=False)
            stays.update(each.oid for (each, _), answer in zip(some, answers, strict=True) if answer != HELD)
        for each in leaving:
            if each.oid not in stays and await self._stock.drop(each.oid):
                self.counters.dropped += 1

    async def _ask(self, name: str, wants: list[Want], *, fetch: bool) -> bytes:
        """Return a node's answers, one for each want; `NO` where it gives none."""
        found = b""
        while len(found) < len(wants) and (info := self._serving.get(name)) is not None:
            some = tuple(wants[len(found) : len(found) + MOST_WANTS])
            try:
                body = encode(HoldRequest(fetch, some))
                answers = await self._rpc.request(info.address, HOLD_PATH, body, name=name, timeout_s=HOLD_S)
            except LuxError as exc:
                log.info("node %s was not asked to hold something: %s", info.label or name, exc)
                break
            if len(answers) != len(some):
                log.info("node %s gave no proper answer to what it should hold", info.label or name)
                break
            found += answers
        return found.ljust(len(wants), bytes((NO,)))
