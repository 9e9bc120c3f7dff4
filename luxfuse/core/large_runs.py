"""How large the requests of a load of large files are, and how many bytes of them may be on their way.

Large requests cost the processor less. But all that are on their way share the line, and each is given up after a time-out:
on a slow line many large ones would all be. So a load begins with one request, and asks for more as long as they end
quickly; for less, when they take long.
"""

from __future__ import annotations

from luxfuse.types import PAGE_BYTES

FIRST_BYTES = 2 << 20
"""Of which nothing is known yet, a line of 100 KB/s still brings that much before a request is given up."""
MOST_BYTES = 1 << 30
"""More than memory lets anybody have on their way."""
STEP = 2
QUICK, SLOW = 1 / 20, 1 / 6
"""Parts of the time-out: a request that took less lets more be on their way, one that took more less."""
PAGES_FROM = ((16 << 20, 4), (2 << 20, 2))
"""With so many bytes on their way, or more, a request is for so many pages; else for one."""


class LargeRuns:
    """The requests of one mount's loads for parts of files. Times in seconds, of any clock that does not go back."""

    def __init__(self, timeout_s: float) -> None:
        """``timeout_s``: after so long a request is given up."""
        self._timeout_s = timeout_s
        self.limit_bytes = FIRST_BYTES
        self.under_way_bytes = 0
        self._cut_s = float("-inf")

    @property
    def pages(self) -> int:
        """How many pages the next request should be for, at most."""
        return next((pages for least, pages in PAGES_FROM if self.limit_bytes >= least), 1)

    @property
    def has_room(self) -> bool:
        """Whether one more may be sent; one always may."""
        return not self.under_way_bytes or self.under_way_bytes + self.pages * PAGE_BYTES <= self.limit_bytes

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
        elif took_s < QUICK * self._timeout_s and not failed:
            self.limit_bytes = min(self.limit_bytes + size_bytes, MOST_BYTES)  # twice as much, once all have ended
