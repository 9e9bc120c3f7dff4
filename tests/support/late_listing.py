"""A store whose answers to listings can be on their way for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from luxfuse.types import ListPage
from tests.support.fake_store import FakeStore


class LateListing(FakeStore):
    """Says what a directory had when it was asked, but says it late. ``wait_for`` the next listing of a prefix."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._late = ""
        self._taken, self._given = threading.Event(), threading.Event()

    def wait_for(self, prefix: str) -> None:
        """Let the answer to the next listing of ``prefix`` be on its way until `give`."""
        self._late = prefix

    @property
    def under_way(self) -> bool:
        """Whether the answer was made up, and is on its way or was given."""
        return self._taken.is_set()

    def give(self) -> None:
        """Let it arrive."""
        self._given.set()

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        pages = list(super().list_directory(prefix))
        if prefix and prefix == self._late:
            self._late = ""
            self._taken.set()
            assert self._given.wait(120)
        yield from pages
