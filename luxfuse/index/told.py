"""Where names and their attributes have been told of, to be taken back there before anything of them changes here."""

from __future__ import annotations

from typing import Protocol


class Told(Protocol):
    """What others answer for us from what we have told them. When a method returns, they do so no more."""

    def revoke(self, parent: int, name: bytes) -> None:
        """A name is about to change: whether it exists, which inode it is, or any attribute. It may be missing now."""

    def revoke_below(self, directory: int) -> None:
        """So are many names of a directory."""

    def revoke_missing(self, directory: int) -> None:
        """It is not known any more which names are missing from a directory."""

    def revoke_all(self) -> None:
        """So is everything."""


class Untold:
    """Nothing is told to anybody."""

    def revoke(self, parent: int, name: bytes) -> None:
        """Nothing to take back."""

    def revoke_below(self, directory: int) -> None:
        """Nothing to take back."""

    def revoke_missing(self, directory: int) -> None:
        """Nothing to take back."""

    def revoke_all(self) -> None:
        """Nothing to take back."""
