"""Directories that move, for questions to the store about their entries.

An answer tells what the store had under the old name of a directory. If that is not its name any more, the answer tells
nothing of the directory: its entries have been removed from there.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

import trio

from luxfuse.index.names import ROOT_INODE, Names

REMEMBERED = 10_000
"""Moved directories remembered; a question would have to be on its way during as many moves to go wrong."""


class Moving:
    """Which directories have moved, by inode, and which are being exchanged."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._number = 0
        self._moved: OrderedDict[int, int] = OrderedDict()
        self._exchanged: dict[int, trio.Event] = {}

    async def under_one_name(self, directory: int) -> int:
        """Wait until the store has all of a directory under one name; returns a number to ask `since` with."""
        while self._exchanged:
            event = next((self._exchanged[i] for i in self._path(directory) if i in self._exchanged), None)
            if event is None:
                break
            await event.wait()
        return self._number

    def now(self, directory: int) -> int | None:
        """Return what `under_one_name` would return; None if it would wait."""
        return None if any(i in self._exchanged for i in self._path(directory)) else self._number

    def since(self, directory: int, number: int) -> bool:
        """Whether a directory, or one above it, has moved since `under_one_name` returned ``number``, or is about to."""
        if self._number == number and not self._exchanged:
            return False
        return any(i in self._exchanged or self._moved.get(i, 0) > number for i in self._path(directory))

    def note(self, directory: int) -> None:
        """A directory has its new name; nothing is removed under the old one yet."""
        self._number += 1
        self._moved[directory] = self._number
        self._moved.move_to_end(directory)
        if len(self._moved) > REMEMBERED:
            self._moved.popitem(last=False)

    @contextlib.contextmanager
    def exchanged(self, *directories: int) -> Iterator[None]:
        """Let questions wait for the block: the entries of these directories are in the store now here, now there."""
        event = trio.Event()
        self._exchanged.update(dict.fromkeys(directories, event))
        try:
            yield
        finally:
            for directory in directories:
                del self._exchanged[directory]
                self.note(directory)
            event.set()

    def _path(self, directory: int) -> Iterator[int]:
        while directory != ROOT_INODE:
            yield directory
            place = self._names.locate(directory)
            if place is None:
                return
            directory = place[0]
