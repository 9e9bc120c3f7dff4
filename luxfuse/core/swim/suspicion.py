"""How long a suspect is given, and how far a node trusts itself. After Lifeguard (Dadgar, Phillips, Currey; 2018).

Most false suspicions come from a node that is itself slow: it reads answers too late. So a suspicion of one node alone
must wait long, and the time shrinks as others agree that probed for themselves. And a node that sees signs of being slow
(probes fail although helpers answer nothing either, it is suspected itself, its ticks come late) probes less
often and waits longer for answers.
"""

from __future__ import annotations

import math

from luxfuse.core.swim.config import SwimConfig


class Suspicion:
    """One suspect's time: from ``patience`` times the shortest down to it, with each node that confirms."""

    __slots__ = ("_accusers", "_hurried", "_longest_s", "_needed", "_shortest_s", "_start_s", "deadline_s")

    def __init__(self, by: str, nodes: int, config: SwimConfig, now_s: float) -> None:
        self._start_s = now_s
        self._accusers = {by}
        self._shortest_s = config.suspicion_s(nodes)
        self._longest_s = self._shortest_s * config.patience
        # In a cluster so small that there are not enough others to confirm, nobody is waited for.
        self._needed = config.confirmations if nodes - 2 >= config.confirmations else 0
        self._hurried = False
        self.deadline_s = 0.0
        self._settle()

    def confirm(self, by: str) -> bool:
        """Another one suspects it too; tells whether that is news, worth passing on."""
        if by in self._accusers or len(self._accusers) > self._needed:
            return False
        self._accusers.add(by)
        self._settle()
        return True

    def hurry(self) -> None:
        """Somebody calls it dead: let it have only the shortest time."""
        self._hurried = True
        self._settle()

    def postpone(self, seconds: float) -> None:
        """Do not count a time in which we could hear nothing."""
        self._start_s += seconds
        self._settle()

    def _settle(self) -> None:
        hurried = self._hurried or not self._needed
        share = 1.0 if hurried else math.log(len(self._accusers)) / math.log(self._needed + 1)
        self.deadline_s = self._start_s + self._longest_s - (self._longest_s - self._shortest_s) * min(1.0, share)


class Health:
    """Our own health as we see it: 0 is good."""

    __slots__ = ("_worst", "score")

    def __init__(self, limit: int) -> None:
        self._worst = limit - 1
        self.score = 0

    def change(self, by: int) -> None:
        """Worse (positive) or better (negative)."""
        self.score = max(0, min(self._worst, self.score + by))

    @property
    def factor(self) -> int:
        """So many times longer our periods and time-outs are."""
        return 1 + self.score
