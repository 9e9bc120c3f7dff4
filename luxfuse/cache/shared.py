"""The state that the cache directories of a mount share, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from luxfuse.cache.placing import Copies, OneNode, Rules

if TYPE_CHECKING:
    from luxfuse.cache.space import Space


class PartRemover(Protocol):
    """Takes parts out of objects that are too large to go whole."""

    async def trim(self, oid: bytes, space: Space, wanted_bytes: int) -> int:
        """Take so many bytes out of a large object; returns those freed, 0 if it is left alone."""


@dataclass(slots=True)
class Shared:
    """The state that the directories of a mount share."""

    rules: Rules
    copies: Copies = field(default_factory=OneNode)
    """Those of the cluster while the mount is in one."""
    removing: dict[bytes, trio.Event] = field(default_factory=dict)
    """Objects whose files are being unlinked: a new file of the same name must wait."""
    strays: set[bytes] = field(default_factory=set)
    """Of those, objects that have their file in another directory: they are as cached as ever."""
    moving: set[bytes] = field(default_factory=set)
    """Objects that the mover copies, or has copied, to another directory: nobody else may begin to."""
    on_lost_files: list[Callable[[Space], None]] = field(default_factory=list)
    """Told of a directory that came back without its files."""
    on_unreadable: list[Callable[[Space], None]] = field(default_factory=list)
    """Told of a directory whose disk cannot be read: its files are not to be used, but stay recorded."""
    on_readable: list[Callable[[Space], None]] = field(default_factory=list)
    """Told that it can be read again; what it lost meanwhile is not known."""
    on_left_files: list[Callable[[], None]] = field(default_factory=list)
    """Told that there may be files that nobody counts, in a directory that was sick, or of a write for nobody."""

    def lost_files(self, space: Space) -> None:
        """A directory came back without its files."""
        for told in self.on_lost_files:
            told(space)

    def left_files(self) -> None:
        """There may be files that nobody counts."""
        for told in self.on_left_files:
            told()
