"""Names that were changed here and that the store does not show so yet.

What the store says of such a name, be it by a listing or by a look-up, is ignored if it was asked for before the store
took the change over. The event loop holds and settles; the writer thread looks names up while it merges a listing (both
are single operations on a dictionary).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

REMEMBERED_S = 900.0
"""For how long a settled name is remembered: longer than an answer of the store can be on its way."""
REMEMBERED = 100_000
"""Settled names remembered at most. Beyond it the oldest go: an old answer can then show a removed name for one TTL."""


class HeldNames:
    """NAMES keys, each with the time up to which the store's words on it are ignored; ``inf`` while it is held."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[bytes, float] = {}
        self._settled: deque[tuple[float, bytes]] = deque()

    def hold(self, key: bytes) -> None:
        """Ignore the store's words on a name from now on."""
        self._until[key] = math.inf

    def settle(self, key: bytes) -> None:
        """The store has what was changed: believe what it is asked for from now on. No effect if the name is not held."""
        if self.holds(key):
            now_s = self._clock()
            self._until[key] = now_s
            self._settled.append((now_s, key))
            self._forget_old(now_s)

    def holds(self, key: bytes) -> bool:
        """Whether a name is held, and not settled."""
        return self._until.get(key) == math.inf

    def ignores(self, key: bytes, asked_s: float) -> bool:
        """Whether an answer to what was asked at ``asked_s`` says nothing new of the name."""
        until = self._until.get(key)
        if until is None or asked_s > until:
            return False
        return until == math.inf or until <= self._clock()  # else the clock was set back since

    def _forget_old(self, now_s: float) -> None:
        settled = self._settled
        while settled and (len(settled) > REMEMBERED or not 0 <= now_s - settled[0][0] <= REMEMBERED_S):
            settled_s, key = settled.popleft()
            if self._until.get(key) == settled_s:  # else it was held again
                del self._until[key]

    def __len__(self) -> int:
        return len(self._until)
