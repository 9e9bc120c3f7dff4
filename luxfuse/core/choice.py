"""Which of the nodes that have a page is asked for it.

Near ones first: those of the same rack, or else those whose round trip is about the shortest. Of these two are drawn, and
the one with less to do for us is asked: everybody's asking the very best one would make it the worst. A node that fails is
left out for a time that doubles with each failure; a dead one at once, until it is alive again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from luxfuse.core.members import Member, MemberState
from luxfuse.core.recent import Recent
from luxfuse.core.rng import Rng

NEAR_FACTOR = 2.0
NEAR_S = 0.0005
"""A round trip up to ``NEAR_FACTOR`` times the shortest and this is as good as the shortest."""
UNKNOWN_S = 0.05
"""Taken for the round trip before one was measured."""
FIRST_BAN_S = 0.5
LONGEST_BAN_S = 30.0
MOST_PEERS = 4096


@dataclass(slots=True)
class _Peer:
    outstanding: int = 0
    failures: int = 0
    banned_until_s: float = 0.0
    recent: Recent = field(default_factory=Recent)


class PeerChoice:
    """Our experience with other nodes. ``rack``: our own label, "" if there is none."""

    def __init__(self, rack: str, rng: Rng) -> None:
        self._rack = rack
        self._rng = rng
        self._peers: dict[str, _Peer] = {}

    def order(self, holders: Sequence[Member], now_s: float) -> list[Member]:
        """Return those worth asking, in the order in which to ask: maybe none. ``now_s``: of a monotonic clock."""
        usable = [each for each in holders if self._usable(each, now_s)]
        near, far = self._divided(usable)
        if len(near) > 1:
            first = self._first_of(near)
            near = [near[first], *sorted(near[:first] + near[first + 1 :], key=self._load)]
        return near + sorted(far, key=lambda each: (_round_trip(each), self._load(each)))

    def _usable(self, member: Member, now_s: float) -> bool:
        if member.state not in (MemberState.ALIVE, MemberState.SUSPECT):
            return False
        peer = self._peers.get(member.info.name)
        return peer is None or peer.banned_until_s <= now_s

    def _divided(self, members: list[Member]) -> tuple[list[Member], list[Member]]:
        """Return the near ones and the others. A node that may be dead is not near."""
        alive = [each for each in members if each.state is MemberState.ALIVE] or members
        neighbours = [each for each in alive if self._rack and each.info.rack == self._rack] or alive
        if not neighbours:
            return [], []
        bound_s = min(map(_round_trip, neighbours)) * NEAR_FACTOR + NEAR_S
        near = [each for each in neighbours if _round_trip(each) <= bound_s]
        names = {each.info.name for each in near}
        return near, [each for each in members if each.info.name not in names]

    def _first_of(self, near: list[Member]) -> int:
        """Return the index of the one of two drawn that has less to do for us."""
        one = self._rng.randrange(len(near))
        other = self._rng.randrange(len(near) - 1)
        other += other >= one
        return min(one, other, key=lambda index: self._load(near[index]))

    def _load(self, member: Member) -> int:
        peer = self._peers.get(member.info.name)
        return peer.outstanding if peer is not None else 0

    def began(self, name: str) -> None:
        """A request to a node was made; one of `answered`, `failed` and `gave_up` must follow."""
        self._peer(name).outstanding += 1

    def answered(self, name: str, seconds: float) -> None:
        """The node gave what it was asked for, or said properly that it has it not."""
        peer = self._ended(name)
        peer.recent.observe(seconds)
        peer.failures, peer.banned_until_s = 0, 0.0

    def failed(self, name: str, now_s: float, *, retry_after_s: float | None = None) -> None:
        """The node could not be asked, or is too busy; it may have said when to ask again."""
        peer = self._ended(name)
        if retry_after_s is None:
            self._ban(peer, now_s)
        else:
            peer.banned_until_s = max(peer.banned_until_s, now_s + min(LONGEST_BAN_S, retry_after_s))

    def slow(self, name: str, now_s: float) -> None:
        """A request to the node, which goes on, takes too long: ask others meanwhile, as after a failure."""
        self._ban(self._peer(name), now_s)

    @staticmethod
    def _ban(peer: _Peer, now_s: float) -> None:
        ban_s = min(LONGEST_BAN_S, FIRST_BAN_S * 2.0**peer.failures)
        peer.failures = min(peer.failures + 1, 16)
        peer.banned_until_s = max(peer.banned_until_s, now_s + ban_s)

    def gave_up(self, name: str) -> None:
        """The request came to nothing by our own will, as when another node was faster."""
        self._ended(name)

    def forget(self, name: str) -> None:
        """The node is dead or has left: if it comes again it is a new one."""
        self._peers.pop(name, None)

    def quantile_s(self, name: str, fraction: float) -> float | None:
        """Return what this fraction of the last answers of a node took at most; None if there were none."""
        peer = self._peers.get(name)
        return peer.recent.quantile(fraction) if peer is not None else None

    def outstanding(self, name: str) -> int:
        """How many requests to a node are under way."""
        peer = self._peers.get(name)
        return peer.outstanding if peer is not None else 0

    def _peer(self, name: str) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= MOST_PEERS:
                del self._peers[min(self._peers, key=lambda each: self._peers[each].outstanding)]
            peer = self._peers[name] = _Peer()
        return peer

    def _ended(self, name: str) -> _Peer:
        peer = self._peer(name)
        peer.outstanding = max(0, peer.outstanding - 1)  # it may have been forgotten meanwhile
        return peer


def _round_trip(member: Member) -> float:
    return UNKNOWN_S if member.round_trip_s is None else member.round_trip_s
