"""How often the log says a thing: some times in a while, and of more only the number."""

from __future__ import annotations

import math


class Ration:
    """``most`` in each ``every_s``, which begin when something is said."""

    def __init__(self, most: int, every_s: float) -> None:
        self._most = most
        self._every_s = every_s
        self._began_s = -math.inf
        self._said = self._unsaid = 0

    def may_say(self, now_s: float) -> bool:
        """Count one, and return whether to say it; `settle` first. ``now_s``: by any clock that goes on."""
        if not self._said:
            self._began_s = now_s
        self._said += 1
        self._unsaid += self._said > self._most
        return self._said <= self._most

    def settle(self, now_s: float) -> int:
        """Return how many were not said in a while that is over by now, once; 0 if it is not over."""
        if now_s - self._began_s < self._every_s:
            return 0
        unsaid, self._said, self._unsaid = self._unsaid, 0, 0
        return unsaid
