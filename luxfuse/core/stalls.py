"""Whether an event loop that does not turn is stuck for good, so that its process may be ended, or is merely slow.

A thread of the same process looks at it once a second, and looks are counted, not time: where the process is stopped, or
the machine sleeps, nobody looks. A loop that is held up by anything that may pass is not stuck: by a disk, by other work
of the machine (its thread could run, and may not), by memory that has to be read back from swap, by a debugger. So what is
left is a thread of which looks show, one after the other, that it sleeps in a call that waits for no disk, and has not
used an instant of processor time since the last look; or one that has computed for longer than anything here may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TOLD_AFTER = 10
"""So many looks in a row without a turn of the loop are worth a line in the log."""
STUCK_AFTER = 60
"""After so many in which it has slept, it is stuck."""
COMPUTES_S = 300.0
"""After so much processor time for one turn, too: what the loop does at once takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look shows of a loop that has not turned since the last one."""

    cpu_s: float
    """The processor time of the loop's thread, from any moment on."""
    asleep: bool
    """Whether it sleeps in a call that waits for nothing but other threads, processes, or a time."""
    held_up: bool
    """Whether a disk, or a debugger, holds up the loop, or a thread that it may wait for."""


class Finding(Enum):
    """What is to be told."""

    STALLED = "it has not turned for some time"
    STUCK = "it will not turn any more"
    TURNS = "it turns again"


class Stalls:
    """The looks at one loop; ``cpu_s``, as in `Look`, when they begin."""

    def __init__(self, cpu_s: float) -> None:
        self.missed = 0
        """Looks without a turn, up to the last one."""
        self._asleep = 0
        self._last_s = self._began_s = cpu_s

    @property
    def stalled(self) -> bool:
        """Whether it was told that the loop does not turn."""
        return self.missed >= TOLD_AFTER

    def turned(self, cpu_s: float) -> Finding | None:
        """The loop has turned since the last look; ``cpu_s`` as in `Look`."""
        was = self.stalled
        self.missed = self._asleep = 0
        self._last_s = self._began_s = cpu_s
        return Finding.TURNS if was else None

    def look(self, look: Look) -> Finding | None:
        """It has not turned. That it is stuck is found again after as long again, if it still is."""
        self.missed += 1
        quiet = look.asleep and not look.held_up and look.cpu_s == self._last_s
        self._asleep = self._asleep + 1 if quiet else 0
        self._last_s = look.cpu_s
        if self.missed == TOLD_AFTER:
            return Finding.STALLED
        if self._asleep >= STUCK_AFTER or (look.cpu_s - self._began_s >= COMPUTES_S and not look.held_up):
            self._asleep, self._began_s = 0, look.cpu_s
            return Finding.STUCK
        return None
