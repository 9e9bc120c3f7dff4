"""When to ask which node for what has changed there: soon after it is heard of, now and then else, and never too often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from luxfuse.core.holdings import Mark

SHORTEST_S = 1.0
"""Between two pulls from one node."""
QUIET_S = 30.0
"""Gossip can get lost: a node of which nothing new is heard is asked so often."""
PULLS_A_SECOND = 100.0
"""From all nodes together, however many there are."""
LONGEST_S = 60.0
"""Between two attempts at a node that fails."""
HEADS_A_SECOND = 20.0
"""Told by all nodes together: gossip carries each to everybody, many times."""


def head_interval_s(nodes: int) -> float:
    """Return how long a node of ``nodes`` waits between two times that it tells the others where its log ends."""
    return max(SHORTEST_S, nodes / HEADS_A_SECOND)


@dataclass(slots=True)
class _Peer:
    next_s: float
    last_s: float = float("-inf")
    known: Mark = field(default_factory=Mark)
    heard: Mark | None = None
    news: Mark | None = None
    """What was heard since the last pull began."""
    begun_anew: bool = False
    """Whether that was of a new log."""
    failures: int = 0
    under_way: bool = False


class Pulls:
    """The plan for all nodes. Times are of one monotonic clock."""

    def __init__(self, now_s: float) -> None:
        self._peers: dict[str, _Peer] = {}
        self._allowed = 0.0
        self._refilled_s = now_s

    def members(self, names: Iterable[str], now_s: float) -> None:
        """These are the nodes that can be asked now."""
        names = set(names)
        for gone in self._peers.keys() - names:
            del self._peers[gone]
        for name in names - self._peers.keys():
            self._peers[name] = _Peer(now_s)

    def heard(self, name: str, head: Mark) -> None:
        """A node says where its log ends. One that fails is asked sooner if the log is a new one: it has started again."""
        peer = self._peers.get(name)
        if peer is None:
            return
        begun_anew = head.log_id != (peer.heard or peer.known).log_id
        peer.heard = peer.news = head
        peer.begun_anew |= begun_anew
        if head != peer.known and (begun_anew or not peer.failures):
            peer.next_s = min(peer.next_s, peer.last_s + SHORTEST_S)

    def take(self, now_s: float, most: int) -> list[str]:
        """Return nodes to pull from now, at most ``most``; each is under way until `pulled` or `failed`."""
        self._allowed = min(PULLS_A_SECOND, self._allowed + (now_s - self._refilled_s) * PULLS_A_SECOND)
        self._refilled_s = now_s
        due = [(peer.next_s, name) for name, peer in self._peers.items() if peer.next_s <= now_s and not peer.under_way]
        names = [name for _, name in sorted(due)[: max(0, min(most, int(self._allowed)))]]
        for name in names:
            peer = self._peers[name]
            peer.under_way, peer.news, peer.begun_anew, peer.last_s = True, None, False, now_s
        self._allowed -= len(names)
        return names

    def pulled(self, name: str, known: Mark, now_s: float, *, more: bool) -> None:
        """A node's log is known up to ``known``; ``more``: there is more to ask for."""
        peer = self._peers.get(name)
        if peer is None:
            return
        peer.under_way, peer.failures, peer.known = False, 0, known
        head = peer.news
        news = head is not None and (head.log_id != known.log_id or head.sequence > known.sequence)
        peer.next_s = peer.last_s + SHORTEST_S if more or news else now_s + QUIET_S

    def failed(self, name: str, now_s: float) -> None:
        """A pull has failed."""
        peer = self._peers.get(name)
        if peer is not None:
            peer.under_way = False
            peer.failures += 1
            wait_s = SHORTEST_S if peer.begun_anew else min(LONGEST_S, 2.0 * SHORTEST_S * 2 ** min(peer.failures - 1, 10))
            peer.next_s = now_s + wait_s
