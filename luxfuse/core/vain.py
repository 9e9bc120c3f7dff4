"""Questions that are asked in vain: when one way of asking is left for another that costs more and always works."""

from __future__ import annotations

import math

VAIN_MOST = 3
"""So many things in a row about which the answer is of no use, or so many such answers about one, are enough."""

PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
"""The first pause, and the longest: what answers so may be a proxy that is gone again, so nothing is given up for ever."""


class Pause:
    """When to try again what was in vain: after pauses each of which is twice as long as the one before."""

    def __init__(self, first_s: float = PAUSE_S, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._last_s = 0.0
        self._again_s = -math.inf

    def is_on(self, now_s: float) -> bool:
        """Whether not to try now."""
        return now_s < self._again_s

    def note(self, now_s: float) -> bool:
        """It was in vain; returns whether a pause begins. What had been begun before one, and ends in it, begins none."""
        if self.is_on(now_s):
            return False
        self._last_s = min(max(self._first_s, 2 * self._last_s), self._longest_s)
        self._again_s = now_s + self._last_s
        return True

    def end(self) -> None:
        """It was of use."""
        self._last_s, self._again_s = 0.0, -math.inf


class InVain:
    """Answers of one kind that were of no use, since the last one that was, and the pause that they bring.

    They are counted by what they are about: that one object is odd says nothing about others, however often it is asked
    for. They count on when a pause is over, so one more begins the next pause, and one of use ends all that.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._pause = Pause()

    def gives_up(self, asked: str, now_s: float) -> bool:
        """Whether not to ask about this for now."""
        return self._is_enough(asked) and self._pause.is_on(now_s)

    def gives_up_all(self, now_s: float) -> bool:
        """Whether not to ask about anything for now."""
        return self._are_enough and self._pause.is_on(now_s)

    def note(self, asked: str, now_s: float) -> bool:
        """The answer was of no use; returns whether from now on nothing is asked about."""
        were_enough = self._are_enough
        if asked in self._counts or not were_enough:  # the pauses have no end, so there may be many things
            self._counts[asked] = self._counts.get(asked, 0) + 1
        if self._are_enough and not were_enough:
            self._pause.end()  # which was of one thing until now
        return self._is_enough(asked) and self._pause.note(now_s) and self._are_enough

    def end(self) -> None:
        """An answer was of use."""
        self._counts.clear()
        self._pause.end()

    @property
    def _are_enough(self) -> bool:
        return len(self._counts) >= VAIN_MOST

    def _is_enough(self, asked: str) -> bool:
        return self._are_enough or self._counts.get(asked, 0) >= VAIN_MOST
