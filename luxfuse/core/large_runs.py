"""How large the requests of loads are, and how many bytes may be on their way for them.

Large requests cost the processor less. But all that are on their way share the line, and each is given up after a time-out:
on a slow line many large ones would all be. So a load begins with one request, and asks for more as long as they end
quickly; for less, when they take long. A store that takes its time for each request is no slow line.
"""

from __future__ import annotations

import math

from luxfuse.types import PAGE_BYTES

FIRST_BYTES = 2 << 20
"""Of which nothing is known yet, a line of 100 KB/s still brings that much before a request is given up."""
MOST_BYTES = 1 << 30
"""More than memory lets anybody have on their way."""
STEP = 2
QUICK, SLOW = 1 / 20, 1 / 6
"""Parts of the time-out: a request that took less lets more be on their way, one that took more less. Between the two, one
does that took not much longer than the shortest of all: what it took, the store takes."""
ALIKE = 2
"""So many times the shortest is not much longer."""
PAGES_FROM = ((16 << 20, 4), (2 << 20, 2))
"""With so many bytes on their way, or more, a request is for so many pages; else for one."""


class LargeRuns:
    """The requests of one mount's loads. Times in seconds, of any clock that does not go back."""

    def __init__(self, timeout_s: float) -> None:
        """``timeout_s``: after so long a request is given up."""
        self._timeout_s = timeout_s
        self.limit_bytes = FIRST_BYTES
        self.under_way_bytes = 0
        self._cut_s = -math.inf
        self._least_s = math.inf

    @property
    def pages(self) -> int:
        """How many pages the next request should be for, at most."""
        return next((pages for least, pages in PAGES_FROM if self.limit_bytes >= least), 1)

    def has_room(self, size_bytes: int) -> bool:
        """Whether one more may be sent, for so many bytes; one always may."""
        return not self.under_way_bytes or self.under_way_bytes + size_bytes <= self.limit_bytes

    def began(self, size_bytes: int) -> None:
        """A request was sent."""
        self.under_way_bytes += size_bytes

    def ended(self, size_bytes: int, began_s: float, now_s: float, *, failed: bool = False) -> None:
        """A request is over that was sent at ``began_s``."""
        self.under_way_bytes -= size_bytes
        took_s = now_s - began_s
        if took_s > SLOW * self._timeout_s:
            if began_s >= self._cut_s:  # those that were on their way at the last cut say no more than the first of them
                self.limit_bytes, self._cut_s = max(self.limit_bytes // STEP, PAGE_BYTES), now_s
            return
        if failed:
            return
        self._least_s = min(self._least_s, took_s)
        if took_s < max(QUICK * self._timeout_s, ALIKE * self._least_s):
            self.limit_bytes = min(self.limit_bytes + size_bytes, MOST_BYTES)  # twice as much, once all have ended
