"""The table of the other nodes: those that there are, the one to probe next, some to ask at random."""

from __future__ import annotations

from collections.abc import Iterator

from luxfuse.core.members import Address, Member, MemberState, NodeInfo
from luxfuse.core.rng import Rng
from luxfuse.core.swim.messages import mark
from luxfuse.core.swim.suspicion import Suspicion

ALIVE, SUSPECT, DEAD, LEFT = MemberState


class Peer:
    """Another node, as we know it. Its info may be older than the incarnation in which it is suspect or dead."""

    __slots__ = ("incarnation", "info", "info_incarnation", "mark", "round_trip_s", "since_s", "state", "suspicion")

    def __init__(self, info: NodeInfo, incarnation: int, now_s: float) -> None:
        self.info = info
        self.info_incarnation = incarnation
        self.incarnation = incarnation
        self.state = ALIVE
        self.since_s = now_s
        self.round_trip_s: float | None = None
        self.suspicion: Suspicion | None = None
        self.mark = 0

    def member(self) -> Member:
        """As others see it."""
        return Member(self.info, self.state, self.incarnation, self.since_s, self.round_trip_s)


class Roster:
    """All other nodes, at most ``limit``; those that live (suspects among them) can be drawn."""

    def __init__(self, limit: int, rng: Rng) -> None:
        self._limit = limit
        self._rng = rng
        self._peers: dict[str, Peer] = {}
        self._live: list[Peer] = []
        self._place: dict[str, int] = {}
        self._round: list[Peer] = []
        self._next = 0
        self.view = 0
        """The digest of those that live, see ``swim_messages.mark``."""

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def get(self, name: str) -> Peer | None:
        """The node of this name, if it is known."""
        return self._peers.get(name)

    @property
    def live(self) -> int:
        """How many live."""
        return len(self._live)

    def at(self, address: Address) -> bool:
        """Whether a node that lives listens at this address."""
        return any(peer.info.address == address for peer in self._live)

    def lost(self) -> list[Address]:
        """Where the dead listened."""
        return [peer.info.address for peer in self._peers.values() if peer.state == DEAD]

    def add(self, peer: Peer) -> Peer | None:
        """Take a new node in, which lives; where there is no room the longest dead one is put out, and returned.

        Raises ValueError if all live.
        """
        gone = None
        if len(self._peers) >= self._limit:
            gone = min((other for other in self if other.state >= DEAD), key=lambda other: other.since_s, default=None)
            if gone is None:
                raise ValueError(f"more than {self._limit} nodes")
            self.remove(gone)
        self._peers[peer.info.name] = peer
        self._enter(peer)
        return gone

    def remove(self, peer: Peer) -> None:
        """Forget a node."""
        del self._peers[peer.info.name]
        self._quit(peer)

    def change(self, peer: Peer, state: MemberState, now_s: float) -> None:
        """Give a node its new state."""
        if state != peer.state:
            peer.since_s = now_s
        peer.state = state
        if state >= DEAD:
            self._quit(peer)
        elif peer.info.name not in self._place:
            self._enter(peer)

    def renew(self, peer: Peer, info: NodeInfo, incarnation: int) -> None:
        """A node says something else of itself."""
        peer.info, peer.info_incarnation = info, incarnation
        if peer.info.name in self._place:
            self._mark(peer)

    def _mark(self, peer: Peer) -> None:
        self.view ^= peer.mark
        peer.mark = mark(peer.info.name, peer.info_incarnation)
        self.view ^= peer.mark

    def draw(self, count: int, but: Peer | None = None) -> list[Peer]:
        """Up to so many that live, at random, without ``but``."""
        live = self._live
        if len(live) <= count + 1:
            some = [peer for peer in live if peer is not but]
            self._rng.shuffle(some)
            return some[:count]
        drawn: list[Peer] = []
        while len(drawn) < count:
            peer = live[self._rng.randrange(len(live))]
            if peer is not but and peer not in drawn:
                drawn.append(peer)
        return drawn

    def next(self) -> Peer | None:
        """The node to probe next: all in random order, then all in another one."""
        while self._live:
            if self._next < len(self._round):
                self._next += 1
                return self._round[self._next - 1]
            self._round = list(self._live)
            self._rng.shuffle(self._round)
            self._next = 0
        return None

    def _enter(self, peer: Peer) -> None:
        self._place[peer.info.name] = len(self._live)
        self._live.append(peer)
        self._mark(peer)
        # A newcomer waits for its first probe as long as any other would, on average.
        turn = self._rng.randrange(len(self._round) + 1)
        self._round.insert(turn, peer)
        self._next += turn < self._next

    def _quit(self, peer: Peer) -> None:
        place = self._place.pop(peer.info.name, None)
        if place is None:
            return
        turn = self._round.index(peer)
        del self._round[turn]
        self._next -= turn < self._next
        self.view ^= peer.mark
        peer.mark = 0
        last = self._live.pop()
        if last is not peer:
            self._live[place] = last
            self._place[last.info.name] = place
