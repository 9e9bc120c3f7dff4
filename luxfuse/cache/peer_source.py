"""Whom to ask for pages that are missing: a node that holds them, or their home, which gets them once for all.

The directory of what others hold is a hint, and so is who is alive: whoever is asked in vain costs a short time, then the
under-store is asked. It is asked beside a peer that takes longer than its like (`core.hedging`), too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from luxfuse.cache.cached import CachedObject, Flight
from luxfuse.cache.race import Done, Fetched, Keep
from luxfuse.core.members import RANGE_PAGES, Member, MemberState, NodeInfo, Want
from luxfuse.core.rendezvous import home
from luxfuse.errors import PeerCorrupt, PeerError, StoreError
from luxfuse.peers.client import Client
from luxfuse.workers import Workers

log = logging.getLogger(__name__)

MOST_REQUESTS = 32
TIMEOUT_S = 20.0
"""For the answer of a peer; the under-store is asked long before."""


class Members(Protocol):
    """The part of the membership that is needed here."""

    @property
    def info(self) -> NodeInfo:
        """This node."""

    def alive(self) -> list[Member]:
        """The others."""


class Holders(Protocol):
    """Who holds what, as far as known."""

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        """Return the names of nodes that may hold a range of an object."""


class Nobody:
    """Knows of no holders."""

    def holders(self, oid: bytes, range_number: int) -> list[str]:
        """Nobody."""
        return []


class Peers:
    """What all volumes of a mount share to ask peers."""

    def __init__(self, members: Members, client: Client, holders: Holders, *, cooperative: bool) -> None:
        """``cooperative``: ask the home of what nobody holds."""
        self._members = members
        self._client = client
        self._holders = holders
        self._cooperative = cooperative
        self._workers = Workers(MOST_REQUESTS)
        self._nodes: dict[bytes, dict[str, NodeInfo]] = {}
        """By source: who is alive and serves it, this node among them."""
        self.asked = self.failed = self.corrupt = 0

    def source(self, source: bytes) -> PeerSource:
        """Return the side that a volume sees."""
        return PeerSource(self, source)

    def changed(self, _member: Member | None = None) -> None:
        """The members, or what they serve, are others now."""
        self._nodes.clear()

    def close(self) -> None:
        """Let the threads end."""
        self._workers.close()

    def nodes(self, source: bytes) -> dict[str, NodeInfo]:
        """Return who is alive and serves a source, this node among them, by name."""
        known = self._nodes.get(source)
        if known is None:
            others = (member.info for member in self._members.alive() if member.state is MemberState.ALIVE)
            known = {info.name: info for info in (self._members.info, *others) if source in info.sources}
            self._nodes[source] = known
        return known

    def route(self, source: bytes, oid: bytes, range_number: int) -> tuple[NodeInfo, bool] | None:
        """Return whom to ask for a range, and whether it has to get it first; None: the under-store."""
        nodes, own = self.nodes(source), self._members.info.name
        if len(nodes) < 2:
            return None
        for name in self._holders.holders(oid, range_number):
            if name != own and name in nodes:
                return nodes[name], False
        if not self._cooperative:
            return None
        responsible = home(oid, range_number, [(info.name, info.weight) for info in nodes.values()])
        return None if responsible == own else (nodes[responsible], True)

    def ask(self, node: NodeInfo, want: Want, fetch: bool, keep: Keep, done: Done[Fetched]) -> None:
        """Ask one node; ``done`` hears of the outcome in the event loop."""
        self.asked += 1

        def job() -> Fetched:
            (result,) = self._client.fetch(node, [want], fetch=fetch, timeout_s=TIMEOUT_S)
            if isinstance(result, PeerError):
                raise result
            return keep(result.data, result.checksums)

        def ended(result: Any, error: BaseException | None) -> None:
            done(result, self._failure(error) if error is not None else None)

        self._workers.submit(job, ended, 0)


    def _failure(self, error: BaseException) -> StoreError:
        """Count a failure, and say of it what those who wait can understand."""
        if isinstance(error, StoreError):
            return error
        self.failed += 1
        self.corrupt += isinstance(error, PeerCorrupt)
        if isinstance(error, PeerCorrupt):
            log.warning("%s", error)
        elif not isinstance(error, PeerError):
            log.error("asking a peer failed in an unexpected way", exc_info=error)
        return StoreError(f"from a peer: {error}")


class PeerSource:
    """Implements `luxfuse.cache.race.PeerSource` for one volume."""

    def __init__(self, peers: Peers, source: bytes) -> None:
        self._peers = peers
        self._source = source

    def ask(
        self, obj: CachedObject, flight: Flight, keep: Keep, done: Done[Fetched], too_slow: Callable[[], None]
    ) -> bool:
        """See there."""
        route = self._peers.route(self._source, obj.oid, flight.pages.start // RANGE_PAGES)
        if route is None:
            return False
        node, fetch = route
        flight.waits_for_peer = fetch
        record = obj.record
        want = Want(self._source, record.key, record.version, record.size, flight.pages.start, len(flight.pages))
        self._peers.ask(node, want, fetch, keep, done)
        return True
