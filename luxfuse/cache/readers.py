"""The kernel's side as the cache sees it: what has cache files open."""

from __future__ import annotations

from typing import Protocol

from luxfuse.cache.cached import CachedObject


class Readers(Protocol):
    """The kernel's side, which has files of the cache open."""

    def may_drop(self, oid: bytes) -> bool:
        """Close an object's backing id unless the kernel has it open; returns whether its file may go."""

    def note_touched(self) -> None:
        """Tell, by `Contents.touch_by_ids`, of the opens that the kernel's side answered alone."""

    def lost(self, oid: bytes) -> None:
        """The file of an object is gone: what has it open reads on, but it is not the object's file any more."""

    def landed(self, obj: CachedObject, pages: range) -> bool:
        """More pages of an object are on disk, or known to be good; returns whether they are not asked for from now on."""

    def reads_alone(self, oid: bytes) -> bool:
        """Whether an object's file is read past us while it is being filled: we do not know how hot its pages are."""

    def take_back(self, oid: bytes) -> None:
        """What is read of an object's file while we know of its opens is to be asked for again, page by page.

        Its bytes may be others than were written, or it is about to have another id.
        """


class NoReaders:
    """`Readers` of a cache that nobody reads from yet."""

    def may_drop(self, _oid: bytes) -> bool:
        """Nothing is open."""
        return True

    def note_touched(self) -> None:
        """Nothing was opened."""

    def lost(self, _oid: bytes) -> None:
        """Nothing is open."""

    def landed(self, _obj: CachedObject, _pages: range) -> bool:
        """Nothing is open."""
        return False

    def reads_alone(self, _oid: bytes) -> bool:
        """Nothing is open."""
        return False

    def take_back(self, _oid: bytes) -> None:
        """Nothing is open."""
