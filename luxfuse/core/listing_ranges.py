"""Which parts of a directory are listed at the same time.

A store tells a thousand names at a time, and where to go on; so a large directory takes as many answers as it has
thousands, one after the other. It can also be asked for the names after any other. So once a directory has turned out to
be large, ranges of names are split: one request goes on in the first half, another begins in the middle. Nobody knows
where the middle is. It is guessed from the names seen so far (`guesses`); ranges that turn out large are split again.

A bad guess costs a request that brings nothing, or little that is new. Only a share of all requests may be such.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from luxfuse.core.guesses import Alphabets, common

SPLIT_FROM = 3
"""Answers that come one after the other before the first guess: smaller directories take no further requests."""
WORTH = 2.5
"""Answers that a range must have before it, as far as is known, to be split."""
FREE_GUESSES = 1
ANSWERS_A_GUESS = 10
"""For so many answers one request may be in vain."""
SAMPLED = 24
"""Names of an answer that are learned from."""


@dataclass(eq=False)
class Range:
    """The names after ``start``, up to ``end``, which is one of them; None: to the last one there is."""

    start: str
    end: str | None
    at: str
    """The last name that has come."""
    token: str = ""
    """Where the store says to go on."""
    busy: bool = False
    done: bool = False
    answers: int = 0
    names: int = 0
    last_answer: tuple[str, str] = ("", "")
    """The first and the last name of the last answer."""
    tried_at: str | None = None
    """Where it was when no place to split it was found."""


class Disordered(Exception):
    """The store does not give names in order, or not those after the name that it was asked for."""


class Ranges:
    """One listing. `next` says what to ask for, `answered` takes what came."""

    def __init__(self, width: int) -> None:
        """``width``: requests at once, at most."""
        self._width = width
        self._ranges = [Range("", None, "")]
        self._alphabets = Alphabets()
        self._guesses = 0
        """Those that are not answered yet."""
        self.answers = 0
        self.wasted = 0
        """Answers that brought little that was new."""

    @property
    def done(self) -> bool:
        """Whether everything has come."""
        return all(each.done for each in self._ranges)

    def next(self) -> Range | None:
        """Return the range in which to ask now; None: wait for an answer. It is busy until `answered`."""
        busy = sum(each.busy for each in self._ranges)
        if busy >= self._width:
            return None
        found = next((each for each in self._ranges if not each.busy and not each.done), None) or self._split()
        if found is not None:
            found.busy = True
        return found

    def answered(self, asked: Range, names: Sequence[str], token: str) -> str | None:
        """Take the names of an answer, in order, and the place to go on, "" at the end.

        Returns the last name that counts, None if all do: those after it belong to the next range. Raises `Disordered`.
        """
        asked.busy = False
        self.answers += 1
        if names and names[0] <= asked.at:
            raise Disordered
        if not asked.answers and asked.start:
            self._guesses -= 1
        asked.answers += 1
        end = asked.end
        kept = len(names) if end is None else bisect_right(names, end)
        if kept * 2 < len(names) or not names:
            self.wasted += 1
        asked.names += kept
        asked.token = token
        asked.done = not token or kept < len(names) or (end is not None and bool(names) and names[-1] == end)
        if names:
            asked.last_answer = names[0], names[-1]
            asked.at = names[-1]
            self._alphabets.learn(names[:: max(1, len(names) // SAMPLED)])
        return end if kept < len(names) else None

    # -- splitting

    def _split(self) -> Range | None:
        if self.answers < SPLIT_FROM or self.wasted + self._guesses >= FREE_GUESSES + self.answers // ANSWERS_A_GUESS:
            return None
        best: tuple[float, Range, str] | None = None
        for each in self._ranges:
            if each.done or not each.names or each.tried_at == each.at:
                continue
            found = self._place(each)
            if found is None:
                each.tried_at = each.at
            elif best is None or found[0] > best[0]:
                best = found[0], each, found[1]
        if best is None:
            return None
        _, left, middle = best
        right = Range(middle, left.end, middle)
        left.end = middle
        self._ranges.insert(self._ranges.index(left) + 1, right)
        self._guesses += 1
        return right

    def _place(self, split: Range) -> tuple[float, str] | None:
        """Return about how many answers are to come in a range, and where to split it; None if it is not worth it."""
        first, last = split.last_answer
        alike = common(first, last)
        if split.end is not None:
            level = min(alike, common(first, split.end))
            return self._middle(split, level, self._alphabets.number(split.end, level), 0.5)
        for level in range(alike, -1, -1):  # as far as names may go that differ a little, then more
            limit = self._alphabets.number(self._alphabets.last(last, level), level)
            found = self._middle(split, level, limit, 0.4)
            if found is not None:
                return found
        return None

    def _middle(self, split: Range, level: int, limit: int, share: float) -> tuple[float, str] | None:
        first, last = (self._alphabets.number(name, level) for name in split.last_answer)
        step = max(1, last - first)
        ahead = (limit - last) / step
        if ahead < WORTH:
            return None
        middle = self._alphabets.name(split.at[:level], last + int(step + (limit - last - step) * share))
        if not split.at < middle or (split.end is not None and not middle < split.end) or "/" in middle:
            return None
        return ahead, middle
