"""Which errors and waits of a storm are allowed, and why. Pure.

A *window* is a time in which something was broken. A call may fail with an error of a window that it met, or that ended
less than `GRACE_S` before it began. It may take `deadline_s` besides the time in which there was no daemon.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

GRACE_S = 5.0
"""After a store is back the mount works again within this time (`mount/test_failures.py`)."""

Allowed = Mapping[str, frozenset[int]]
ALWAYS: Allowed = {
    "store": frozenset({errno.EIO}),
    "refused": frozenset({errno.EACCES, errno.EIO}),
    "disk": frozenset({errno.ENOSPC}),
}
"""B1 (the store does not answer: EIO; it refuses us: EACCES) and W16 (no room for what is written: ENOSPC)."""
WITHOUT_KEEPER: Allowed = {"kill": frozenset({errno.ENOTCONN, errno.ECONNABORTED})}
"""B7. ECONNABORTED is what the kernel says of a call that was under way."""


@dataclass(frozen=True)
class Window:
    """Something was broken from ``begin`` to ``end``, in seconds of the monotonic clock."""

    kind: str
    begin: float
    end: float

    def met(self, begin: float, end: float, grace_s: float = GRACE_S) -> bool:
        """Whether a call from ``begin`` to ``end`` can have met it."""
        return begin <= self.end + grace_s and end >= self.begin

    def overlap(self, begin: float, end: float) -> float:
        """Seconds that both have in common."""
        return max(0.0, min(self.end, end) - max(self.begin, begin))


@dataclass(frozen=True)
class Call:
    """A call that failed or took long; ``error`` is 0 for one that did not fail."""

    worker: int
    verb: str
    name: str
    error: int
    begin: float
    end: float

    def __str__(self) -> str:
        how = errno.errorcode.get(self.error, str(self.error)) if self.error else "done"
        return f"worker {self.worker}: {self.verb} {self.name}: {how} after {self.end - self.begin:.2f} s"


def allowed_by(call: Call, windows: Iterable[Window], allowed: Allowed) -> str | None:
    """Return the kind of window that explains the error of a call, None if none does."""
    for window in windows:
        if call.error in allowed.get(window.kind, frozenset()) and window.met(call.begin, call.end):
            return window.kind
    return None


def judge(
    calls: Sequence[Call], windows: Sequence[Window], allowed: Allowed, *, deadline_s: float, zero: float
) -> list[str]:
    """Say which calls failed as they must not, or waited beyond their deadline; times are shown from ``zero`` on."""
    wrong = []
    for call in calls:
        if call.error and allowed_by(call, windows, allowed) is None:
            wrong.append(f"at {call.begin - zero:.2f} s, {call}: not allowed")
        waited = call.end - call.begin - sum(w.overlap(call.begin, call.end) for w in windows if w.kind == "kill")
        if waited > deadline_s:
            wrong.append(f"at {call.begin - zero:.2f} s, {call}: beyond the deadline of {deadline_s:g} s")
    return wrong


def slope_per_minute(samples: Sequence[tuple[float, float]]) -> float:
    """Least squares: by how much a value of (seconds, value) grows in a minute; 0 for less than two times."""
    count = len(samples)
    mean_time = sum(t for t, _ in samples) / count if count else 0.0
    mean = sum(v for _, v in samples) / count if count else 0.0
    spread = sum((t - mean_time) ** 2 for t, _ in samples)
    return 60 * sum((t - mean_time) * (v - mean) for t, v in samples) / spread if spread else 0.0
