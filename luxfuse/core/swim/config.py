"""Options of the membership protocol, its needs from outside, and its counters."""

from __future__ import annotations

import math

import msgspec

from luxfuse.core.members import Address


class SwimConfig(msgspec.Struct, frozen=True):
    """Settings, the same on all nodes of a cluster.

    ``period_s``: each node probes one other in so much time. ``timeout_s``: how long an answer may take before others
    are asked to probe; a second ping goes out after half of it. ``helpers``: how many are asked. ``health_limit``:
    periods and time-outs of a node that does badly grow up to so many times.
    ``gossip_s``, ``fanout``, ``burst``: while there is news it goes, so often, to so many, in so many datagrams each.
    ``spread``: each piece of news is sent ``spread * ln(n + 1)`` times by each node.
    ``suspicion``: a suspect has at least ``suspicion * log10(n)`` periods to say that it lives; ``patience``: so many times
    that when nobody else suspects it; ``confirmations``: how many others must, for the shortest time.
    ``push_pull_s``: time between exchanges of everything, more in clusters above 32; ``join_s``: while nobody is known.
    ``forget_s``: how long the dead are remembered. ``late_s``: a tick that comes so late says that we were not running.
    ``members``, ``broadcasts``: the most that are kept.
    """

    period_s: float = 1.0
    timeout_s: float = 0.5
    helpers: int = 3
    health_limit: int = 8
    gossip_s: float = 0.1
    fanout: int = 3
    burst: int = 8
    spread: float = 3.0
    suspicion: float = 4.0
    patience: float = 6.0
    confirmations: int = 2
    push_pull_s: float = 30.0
    join_s: float = 5.0
    forget_s: float = 3600.0
    late_s: float = 0.25
    members: int = 4096
    broadcasts: int = 1024

    def transmissions(self, nodes: int) -> int:
        """How often each node sends a piece of news."""
        return math.ceil(self.spread * math.log(nodes + 1))

    def suspicion_s(self, nodes: int) -> float:
        """The shortest time that a suspect is given."""
        return self.suspicion * max(1.0, math.log10(nodes)) * self.period_s

    def exchange_s(self, nodes: int) -> float:
        """The time between two exchanges of everything that a node begins."""
        return self.push_pull_s * (1 + max(0, math.ceil(math.log2(max(1, nodes) / 32))))


class Counters:
    """Counts of events since the start, of which `SwimStatistics` are made."""

    __slots__ = (
        "conflict",
        "conflicts",
        "deaths",
        "exchanges",
        "garbage",
        "heard",
        "late",
        "misdirected",
        "old_version",
        "refused",
        "refuted",
        "repeated",
        "suspicions",
    )

    def __init__(self) -> None:
        self.conflict: Address | None = None
        self.conflicts = self.deaths = self.exchanges = self.garbage = self.heard = self.late = 0
        self.misdirected = self.old_version = self.refused = self.refuted = self.repeated = self.suspicions = 0


class SwimStatistics(msgspec.Struct, frozen=True):
    """The protocol's state in figures; counters run from the start on.

    ``health``: 0 is good, ``health_limit - 1`` the worst. ``queued``: updates and broadcasts on their way out.
    ``suspicions``, ``deaths``: begun and declared by this node itself. ``refuted``: how often we had to say that we live.
    ``late``: ticks that came late. ``garbage``, ``old_version``, ``misdirected`` (to another node): datagrams dropped.
    ``heard``, ``repeated``, ``dropped``: broadcasts of others, copies of them, and ones that fell out of the full queue.
    ``refused``: updates about nodes that are malformed or too many. ``conflicts``: how often two nodes appeared under one
    name, and ``conflict`` the address of the last one that did.
    """

    alive: int
    suspect: int
    dead: int
    left: int
    incarnation: int
    health: int
    queued: int
    suspicions: int
    deaths: int
    refuted: int
    late: int
    garbage: int
    old_version: int
    misdirected: int
    heard: int
    repeated: int
    dropped: int
    refused: int
    exchanges: int
    conflicts: int
    conflict: Address | None
