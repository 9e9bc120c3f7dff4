"""How many requests to have under way: few to a store nearby, many to one far away.

By Little's law what a link of given throughput needs is proportional to its latency. The shortest of the recent
request times tells that latency even when our own load makes most of them longer, so a busy machine does not talk
itself into ever more threads. A request of several MiB counts as that many: fewer of them keep the link busy, and
too many at once share it so evenly that a stream gets all its pages late and together.
"""

from __future__ import annotations

from collections import deque

REQUESTS_PER_S_OF_LATENCY = 3200
"""64 requests at 20 ms, 8 at 2.5 ms. Measured on 2 cores: 8 threads fetch 100 KiB objects from loopback twice as fast
as 64 do."""
WINDOW = 32
MIB = 1 << 20


class Concurrency:
    """A limit between ``low`` and ``high`` that follows the latency of the store."""

    __slots__ = ("_high", "_low", "_recent", "limit")

    def __init__(self, low: int, high: int) -> None:
        self._low = min(low, high)
        self._high = high
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self.limit = self._low

    def bound(self, high: int) -> None:
        """Go up to ``high`` from now on."""
        self._low, self._high = min(self._low, high), high
        self.limit = min(self.limit, high)

    def observe(self, seconds: float, size_bytes: int) -> None:
        """Take the duration and size of one request into account."""
        self._recent.append(seconds / max(1.0, size_bytes / MIB))
        wanted = int(min(self._recent) * REQUESTS_PER_S_OF_LATENCY)
        self.limit = max(self._low, min(self._high, wanted))


def in_a_turn(files: int, width: int, at_once: int, most: int) -> int:
    """How many of so many small files a thread fetches in one turn, which costs more than the request for one of them.

    ``at_once`` of a turn are under way together, the others of it after them. So as few as it takes to have ``width``
    requests under way; but ``at_once`` at least, and ``most`` at most.
    """
    return max(at_once, min(most, -(-files * at_once // width)))
