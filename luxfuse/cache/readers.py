"""The kernel's side as the cache sees it: what has cache files open."""

from __future__ import annotations

from typing import Protocol


class Readers(Protocol):
    """The kernel's side, which has files of the cache open."""

    def may_drop(self, oid: bytes) -> bool:
        """Close an object's backing id unless the kernel has it open; returns whether its file may go."""

    def note_touched(self) -> None:
        """Tell, by `Contents.touch_by_id`, of the opens that the kernel's side answered alone."""

    def lost(self, oid: bytes) -> None:
        """The file of an object is gone: what has it open reads on, but it is not the object's file any more."""


class NoReaders:
    """`Readers` of a cache that nobody reads from yet."""

    def may_drop(self, _oid: bytes) -> bool:
        """Nothing is open."""
        return True

    def note_touched(self) -> None:
        """Nothing was opened."""

    def lost(self, _oid: bytes) -> None:
        """Nothing is open."""
