"""Whether many small files wait for the under-store when they are closed, so that another write mode would serve better."""

from __future__ import annotations

from collections import deque

SMALL_BYTES = 1 << 20
WINDOW_S = 60.0
MANY = 50
LONG_S = 10.0
"""So many closes that waited so long together within the window are worth a hint."""
REMEMBERED = 1000


class SmallCloses:
    """Closes that waited for the under-store lately. Moments in seconds of any clock."""

    def __init__(self) -> None:
        self._waits: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self.hint: str | None = None
        """A line for the operator; stays once it is set."""

    def note(self, now_s: float, waited_s: float, size_bytes: int) -> bool:
        """Take note of a close that has ended; returns whether `hint` was set by it."""
        if self.hint is not None or size_bytes > SMALL_BYTES:
            return False
        self._waits.append((now_s, waited_s))
        while now_s - self._waits[0][0] > WINDOW_S:
            self._waits.popleft()
        waited_s = sum(wait for _, wait in self._waits)
        if len(self._waits) < MANY or waited_s < LONG_S:
            return False
        self.hint = (
            f"closing {len(self._waits)} small files waited {waited_s:.0f} s for the under-store within a minute: with the "
            "write mode async-through, for all or by rules for some paths, they wait for the local disk only"
        )
        self._waits.clear()
        return True
