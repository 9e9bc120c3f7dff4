"""Questions that are asked in vain: when one way of asking is given up for another that costs more and always works."""

from __future__ import annotations

VAIN_MOST = 3
"""So many things in a row about which the answer is of no use, or so many such answers about one, are enough."""


class InVain:
    """Answers of one kind that were of no use, since the last one that was.

    They are counted by what they are about: that one object is odd says nothing about others, however often it is asked
    for.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def gives_up(self, asked: str) -> bool:
        """Whether not to ask about this any more."""
        return self.gives_up_all or self._counts.get(asked, 0) >= VAIN_MOST

    @property
    def gives_up_all(self) -> bool:
        """Whether not to ask about anything any more."""
        return len(self._counts) >= VAIN_MOST

    def note(self, asked: str) -> None:
        """The answer was of no use."""
        self._counts[asked] = self._counts.get(asked, 0) + 1

    def end(self) -> None:
        """An answer was of use."""
        self._counts.clear()


class Pause:
    """When to try again what was in vain: after pauses each of which is twice as long as the one before."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._last_s = 0.0
        self._again_s: float | None = None

    def is_on(self, now_s: float) -> bool:
        """Whether not to try now."""
        return self._again_s is not None and now_s < self._again_s

    def note(self, now_s: float) -> bool:
        """It was in vain; returns whether a pause begins. What had been begun before one, and ends in it, begins none."""
        if self.is_on(now_s):
            return False
        self._last_s = min(max(self._first_s, 2 * self._last_s), self._longest_s)
        self._again_s = now_s + self._last_s
        return True

    def end(self) -> None:
        """It was of use."""
        self._last_s, self._again_s = 0.0, None
