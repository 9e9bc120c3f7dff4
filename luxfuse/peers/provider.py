"""The protocol by which the server of pages asks its node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from luxfuse.core.members import Want
from luxfuse.types import Description


@dataclass(slots=True)
class Provided:
    """The bytes of a want: ``length`` of them in ``data``, or at ``offset`` in the file ``fd``.

    ``checksums``: xxh3-64 of each page. They must not change until `release`.
    """

    length: int
    checksums: tuple[int, ...]
    fd: int = -1
    offset: int = 0
    data: memoryview | None = None
    on_release: Callable[[], None] | None = None
    described: Description | None = None
    """The attributes of the object, as far as they are known."""

    def release(self) -> None:
        """The bytes are not needed any more. Called in the event loop, once for each; must not raise."""
        on_release, self.on_release, self.data = self.on_release, None, None
        if on_release is not None:
            on_release()


class Provider(Protocol):
    """Where pages come from."""

    async def provide(self, want: Want, *, fetch: bool) -> Provided:
        """Return all pages of a want. Raises `PeerRefused`.

        ``fetch``: get those that are missing from the under-store first, because this node is their home. It is
        cancelled when nobody waits for the pages any longer.
        """
