"""A limit on bytes a second, shared fairly: a token bucket with a queue for each class of requests.

A request is let go when the bucket is not in debt, and then charged with all its bytes; so it never waits for more tokens
than the bucket could hold, and on average the rate is kept. Of two classes that both wait, the one that has had fewer
bytes goes first: many requests in the background do not keep a few in the foreground waiting.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

BURST_S = 0.1
"""The bucket holds what comes in in so long."""


class BandwidthQueue(Generic[T]):
    """Requests that wait to be sent. Times in seconds, of any clock that does not go back."""

    def __init__(self, bytes_s: float, now_s: float) -> None:
        """``bytes_s``: bytes a second."""
        self._rate = bytes_s
        self._tokens = bytes_s * BURST_S
        self._now_s = now_s
        self._waiting: dict[bool, deque[tuple[int, T]]] = {False: deque(), True: deque()}
        self._had = {False: 0.0, True: 0.0}

    def set_rate(self, bytes_s: float, now_s: float) -> None:
        """From now on so many bytes a second."""
        self._come_in(now_s)
        self._rate = bytes_s
        self._tokens = min(self._tokens, bytes_s * BURST_S)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, size_bytes: int, item: T, *, background: bool = False) -> None:
        """Queue a request."""
        if not self._waiting[background]:
            # A user that comes anew has not saved up for it.
            others = self._had[not background] if self._waiting[not background] else self._had[background]
            self._had[background] = max(self._had[background], others)
        self._waiting[background].append((size_bytes, item))

    def charge(self, size_bytes: int) -> None:
        """Count bytes that did not wait."""
        self._tokens -= size_bytes

    def try_take(self, size_bytes: int, now_s: float) -> bool:
        """Charge a request that may be sent now, without a place in the queue; False if it must queue."""
        self._come_in(now_s)
        if len(self) or self._tokens < 0:
            return False
        self._tokens -= size_bytes
        return True

    def take(self, now_s: float) -> list[T]:
        """Return the requests that may be sent now, in order."""
        self._come_in(now_s)
        taken = []
        while self._tokens >= 0 and (chosen := self._next()) is not None:
            size_bytes, item = self._waiting[chosen].popleft()
            self._tokens -= size_bytes
            self._had[chosen] += size_bytes
            taken.append(item)
        return taken

    def _come_in(self, now_s: float) -> None:
        self._tokens = min(self._rate * BURST_S, self._tokens + (now_s - self._now_s) * self._rate)
        self._now_s = now_s

    def _next(self) -> bool | None:
        """Return which class is next: whether it is the one in the background; None if nobody waits."""
        waiting = [background for background, queue in self._waiting.items() if queue]
        return min(waiting, key=lambda background: self._had[background], default=None)

    def wait_s(self) -> float | None:
        """Return in how long after the last `take` something may be sent; None if nobody waits."""
        return max(0.0, -self._tokens / self._rate) if len(self) else None
