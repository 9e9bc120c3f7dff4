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
        return len(self._counts) >= VAIN_MOST or self._counts.get(asked, 0) >= VAIN_MOST

    def note(self, asked: str) -> None:
        """The answer was of no use."""
        self._counts[asked] = self._counts.get(asked, 0) + 1

    def end(self) -> None:
        """An answer was of use."""
        self._counts.clear()
