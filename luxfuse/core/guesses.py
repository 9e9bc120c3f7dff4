"""Guessing where names of a directory are that have not been listed yet, from those that have.

A guess is only a place to go on from, and need not be a name. What is guessed wrong costs a request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

POSITIONS = 48
"""Characters of names that are looked at."""
DEPTH = 12
"""Characters behind a common beginning that count for how far apart two names are."""
_RUNS = ("0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_HEX = "abcdef"


class Alphabets:
    """The characters that names have at each position: those seen, and those that go with them, as digits with a digit."""

    def __init__(self) -> None:
        self._seen: list[set[str]] = []
        self._letters: set[str] = set()
        self._complete: dict[int, str] = {}

    def learn(self, names: Iterable[str]) -> None:
        """Take note of some names."""
        for name in names:
            for position, character in enumerate(name[:POSITIONS]):
                if position == len(self._seen):
                    self._seen.append(set())
                if character not in self._seen[position] and character != "/":
                    self._seen[position].add(character)
                    self._complete.pop(position, None)

    def at(self, position: int) -> str:
        """Return the characters of a position in their order; "" behind all names."""
        if position >= len(self._seen):
            return ""
        if position not in self._complete:
            seen = self._seen[position]
            full = set(seen)
            for run in _RUNS:
                found = seen.intersection(run)
                if found:
                    hexadecimal = found <= set(_HEX) and len(seen) > 1 and not seen.isdisjoint(_RUNS[0])
                    full.update(_HEX if hexadecimal else run)
            self._complete[position] = "".join(sorted(full))
        return self._complete[position]

    def last(self, name: str, level: int) -> str:
        """Return about the last name that begins as ``name`` does up to ``level``."""
        return name[:level] + "".join(self.at(p)[-1:] for p in range(level, min(level + DEPTH, len(self._seen))))

    def number(self, name: str, level: int) -> int:
        """Return a number for a name among those that begin as it does up to ``level``."""
        value = 0
        for position in range(level, level + DEPTH):
            alphabet = self.at(position)
            base = max(1, len(alphabet)) + 1  # 0: the name has ended
            digit = 0
            if position < len(name) and alphabet:
                digit = 1 + min(bisect_left(alphabet, name[position]), len(alphabet) - 1)
            value = value * base + digit
        return value

    def name(self, beginning: str, number: int) -> str:
        """Return the name of a number, with that beginning: the reverse of `number`."""
        digits: list[tuple[str, int]] = []
        for position in range(len(beginning) + DEPTH - 1, len(beginning) - 1, -1):
            alphabet = self.at(position)
            number, digit = divmod(number, max(1, len(alphabet)) + 1)
            digits.append((alphabet, digit))
        found = beginning
        for alphabet, digit in reversed(digits):
            if not digit or not alphabet:
                break
            found += alphabet[digit - 1]
        return found


def common(one: str, other: str) -> int:
    """Return how many characters two names begin with that are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(one), len(other)))
