"""Whether a daemon that says that it is stuck is ended: where one after the other is, people have to look."""

from __future__ import annotations

from enum import Enum

MOST, WITHIN_S = 3, 3600.0
"""So many are ended in so long."""
LATE_S = 5.0
"""What was said so long ago is not believed any more: the daemon may have gone on meanwhile."""


class Ending(Enum):
    """What is done."""

    END = "the daemon is stuck, and is ended"
    LEAVE = f"the daemon is stuck, as were {MOST} within the last hour, and is left as it is; look at what it waits for"
    NOTHING = ""


class Endings:
    """The daemons of one mount that were ended."""

    def __init__(self) -> None:
        self._at_s: list[float] = []
        self._ended = self._left = 0

    def judge(self, daemon: int, said_s: float, now_s: float) -> Ending:
        """Say what is to be done about a daemon, which has said at ``said_s`` that it is stuck; that it is left, once."""
        if daemon == self._ended or not 0 <= now_s - said_s < LATE_S:
            return Ending.NOTHING
        self._at_s = [at_s for at_s in self._at_s if now_s - at_s < WITHIN_S]
        if len(self._at_s) < MOST:
            self._at_s.append(now_s)
            self._ended = daemon
            return Ending.END
        if self._left == daemon:
            return Ending.NOTHING
        self._left = daemon
        return Ending.LEAVE
