"""Signals that reach a successor before it serves: seen to once it does, so that it ends in good order."""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class EarlySignals:
    """Those of one daemon, which its keeper has started with these signals blocked."""

    def __init__(self) -> None:
        self._came: list[int] = []

    def keep(self) -> None:
        """Keep what comes from now on, and what came before."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)

    def replay(self) -> None:
        """Send all that came to this process again, which has other handlers now."""
        came, self._came = self._came, []
        for number in came:
            os.kill(os.getpid(), number)
