"""Randomness as decisions take it: given to them, so that a test can give it, too."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Rng(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float:
        """Return a number in [0, 1)."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between two."""

    def randrange(self, stop: int, /) -> int:
        """Return an integer in [0, stop)."""

    def choice(self, seq: Sequence[T], /) -> T:
        """Return one of several."""

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """Put them into random order."""
