"""The node to ask for pages that are missing: one that holds them, or their home, which gets them once for all.

The directory of locations is a hint, and so is the membership: a node that is asked in vain costs a short time, then the
under-store is asked. It is asked beside a peer that takes longer than its like (`core.hedging`), too.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.race import Done, Fetched, Keep
from luxfuse.cluster.members import Members
from luxfuse.core.choice import PeerChoice
from luxfuse.core.hedging import Hedging
from luxfuse.core.members import RANGE_PAGES, Member, MemberState, NodeInfo, Want
from luxfuse.core.rendezvous import home
from luxfuse.core.rng import Rng
from luxfuse.errors import LuxError, PeerCorrupt, PeerError, PeerRefused, Refusal, StoreError
from luxfuse.peers import client
from luxfuse.peers.batches import Batches

log = logging.getLogger(__name__)

TIMEOUT_S = 20.0
"""For the answer of a peer; the under-store is asked long before."""
HEDGE_CHECK_S = 0.005
HOME_FLOOR_S = 1.0
HOME_UNKNOWN_S = 3.0
PATIENCE_S = 2.0
HOME_PATIENCE_S = 6.0
PATIENCE_FACTOR = 4.0
"""After this, or so many times what is usual, the under-store is asked, too, however often that was done lately."""
CORRUPT_LOG_S = 60.0
HOMES_KEPT = 4096
"""To find the home of a range takes about a microsecond for each node of the cluster."""


class Holders(Protocol):
    """The locations of ranges, as far as they are known."""

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        """Return the names of nodes that may hold a range of an object."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A request to a node. ``due_s``: when the under-store may be asked, too; ``late_s``: when it is."""

    name: str
    fetch: bool
    size_bytes: int
    began_s: float
    due_s: float
    late_s: float
    too_slow: Callable[[], None]


class Peers:
    """Asks peers, for all volumes of a mount."""

    def __init__(self, members: Members, fetcher: client.Client, holders: Holders, *, cooperative: bool, rng: Rng) -> None:
        """``cooperative``: ask the home of ranges that nobody holds."""
        self._members = members
        self._batches = Batches(fetcher)
        self._holders = holders
        self._cooperative = cooperative
        self.choice = PeerChoice(members.info.rack, rng)
        self._hedging = {False: Hedging(), True: Hedging(floor_s=HOME_FLOOR_S, unknown_s=HOME_UNKNOWN_S)}
        """Apart for homes, which have to get the pages first: they are asked so that the store is asked once only."""
        self._asked: set[_Asked] = set()
        self._wake = trio.Event()
        self._nodes: dict[bytes, dict[str, Member]] = {}
        """By source: the members that are alive and serve it."""
        self._homes: OrderedDict[tuple[bytes, int], str] = OrderedDict()
        self._corrupt_logged_s = -math.inf
        self.asked = self.failed = self.corrupt = 0

    def source(self, source: bytes) -> PeerSource:
        """Return the side that a volume sees."""
        return PeerSource(self, source)

    def changed(self, member: Member | None = None) -> None:
        """The members, or what they serve, are others now."""
        self._nodes.clear()
        self._homes.clear()
        if member is not None and member.state in (MemberState.DEAD, MemberState.LEFT):
            self.choice.forget(member.info.name)
            for asked in [asked for asked in self._asked if asked.name == member.info.name]:
                asked.too_slow()

    def close(self) -> None:
        """Let the threads end."""
        self._batches.close()

    @property
    def hedges(self) -> int:
        """How often the under-store was asked because a peer was slow."""
        return sum(hedging.hedges for hedging in self._hedging.values())

    def statistics(self) -> dict[str, int]:
        """Return counters, from the start on."""
        return {"asked": self.asked, "failed": self.failed, "corrupt": self.corrupt, "hedges": self.hedges}

    def nodes(self, source: bytes) -> dict[str, Member]:
        """Return the other nodes that are alive and serve a source, by name."""
        known = self._nodes.get(source)
        if known is None:
            known = {each.info.name: each for each in self._members.alive() if source in each.info.sources}
            self._nodes[source] = known
        return known

    def route(self, source: bytes, oid: bytes, range_number: int) -> tuple[NodeInfo, bool] | None:
        """Return the node to ask for a range, and whether it has to get it first; None: the under-store."""
        nodes = self.nodes(source)
        if not nodes:
            return None
        now_s = trio.current_time()
        holders = [nodes[name] for name in self._holders.holders(oid, range_number) if name in nodes]
        if holders and (ordered := self.choice.order(holders, now_s)):
            return ordered[0].info, False
        if not self._cooperative:
            return None
        responsible = self._home(nodes, oid, range_number, now_s)
        return (responsible.info, True) if responsible is not None else None

    def _home(self, nodes: dict[str, Member], oid: bytes, range_number: int, now_s: float) -> Member | None:
        """Return the home of a range, or the next node where that cannot be asked now; None: this node."""
        own = self._members.info
        candidates = dict(nodes)
        while candidates:
            known = self._homes.get((oid, range_number)) if len(candidates) == len(nodes) else None
            if known is None:
                weights = [(own.name, own.weight), *((each.info.name, each.info.weight) for each in candidates.values())]
                known = home(oid, range_number, weights)
                if len(candidates) == len(nodes):
                    self._homes[oid, range_number] = known
                    if len(self._homes) > HOMES_KEPT:
                        self._homes.popitem(last=False)
            if known == own.name:
                return None
            if self.choice.order([candidates[known]], now_s):
                return candidates[known]
            del candidates[known]
        return None

    def ask(self, node: NodeInfo, want: Want, *, fetch: bool, size_bytes: int, keep: Keep, done: Done[Fetched],
            too_slow: Callable[[], None], later: bool = False) -> None:  # fmt: skip
        """Ask one node; ``done`` hears of the outcome in the event loop. ``later``: others that wait go first."""
        hedging, now_s = self._hedging[fetch], trio.current_time()
        delay_s = hedging.delay_s(size_bytes)
        patience_s = max(HOME_PATIENCE_S if fetch else PATIENCE_S, PATIENCE_FACTOR * delay_s)
        asked = _Asked(node.name, fetch, size_bytes, now_s, now_s + delay_s, now_s + patience_s, too_slow)
        self.asked += 1
        self.choice.began(node.name)
        hedging.began(len(self.nodes(want.source)) or 1)
        self._asked.add(asked)
        self._wake.set()

        def ended(fetched: Fetched | None, error: LuxError | None) -> None:
            self._asked.discard(asked)
            done(fetched, self._judge(asked, error))

        self._batches.submit(
            node,
            want,
            lambda got: keep(got.data, got.checksums, got.described),
            ended,
            fetch=fetch,
            timeout_s=TIMEOUT_S,
            later=later,
        )

    def _judge(self, asked: _Asked, error: LuxError | None) -> StoreError | None:
        """Learn from the end of a request; returns a failure as readers of pages know them."""
        now_s = trio.current_time()
        if error is None:
            self.choice.answered(asked.name, now_s - asked.began_s)
            self._hedging[asked.fetch].observe(asked.size_bytes, now_s - asked.began_s)
            return None
        if isinstance(error, StoreError):  # the under-store was faster
            self.choice.gave_up(asked.name)
            self._hedging[asked.fetch].observe(asked.size_bytes, now_s - asked.began_s)
            return error
        self.failed += 1
        if isinstance(error, PeerRefused) and error.reason is not Refusal.BUSY:
            self.choice.answered(asked.name, now_s - asked.began_s)
        else:
            self.choice.failed(asked.name, now_s, retry_after_s=getattr(error, "retry_after_s", None))
        self._report(error, now_s)
        return StoreError(f"from a peer: {error}")

    def _report(self, error: LuxError, now_s: float) -> None:
        if isinstance(error, PeerCorrupt):
            self.corrupt += 1
            if now_s - self._corrupt_logged_s > CORRUPT_LOG_S:
                self._corrupt_logged_s = now_s
                log.warning("%s; asking the under-store instead", error)
        elif not isinstance(error, PeerError):
            log.error("asking a peer failed in an unexpected way: %s", error)

    async def run(self) -> None:
        """Have the under-store asked where peers are slow, until cancelled."""
        while True:
            await self._wake.wait()
            while self._asked:
                await trio.sleep(HEDGE_CHECK_S)
                now_s = trio.current_time()
                for asked in [asked for asked in self._asked if now_s >= asked.due_s]:
                    self._hedge(asked, now_s)
            self._wake = trio.Event()

    def _hedge(self, asked: _Asked, now_s: float) -> None:
        """A peer is slow: have the under-store asked, too, if that is paid for, or if it is late anyhow."""
        hedging = self._hedging[asked.fetch]
        if now_s < asked.late_s and not hedging.take():
            asked.due_s = asked.late_s
            return
        if now_s >= asked.late_s:
            hedging.insist()
        asked.due_s = math.inf
        self.choice.slow(asked.name, now_s)
        asked.too_slow()


class PeerSource:
    """Implements `luxfuse.cache.race.PeerSource` for one volume."""

    def __init__(self, peers: Peers, source: bytes) -> None:
        self._peers = peers
        self._source = source
        self.taking_part = False

    def ask(self, obj: CachedObject, flight: Flight, keep: Keep, done: Done[Fetched], too_slow: Callable[[], None]) -> bool:
        """Ask a node that holds the pages, or their home; False if there is none."""
        route = self._peers.route(self._source, obj.oid, flight.pages.start // RANGE_PAGES)
        if route is None:
            return False
        node, fetch = route
        flight.asks_peer, flight.waits_for_peer = True, fetch
        record, pages = obj.record, flight.pages
        want = Want(self._source, record.key, record.version, record.size, pages.start, len(pages))
        self._peers.ask(
            node, want, fetch=fetch, size_bytes=flight.length, keep=keep, done=done, too_slow=too_slow, later=flight.later
        )
        return True
