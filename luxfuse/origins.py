"""Where the bytes come from that a request asks for: the cache tells the request's own task, while there is a watcher."""

from __future__ import annotations

from contextvars import ContextVar, Token

import trio

MEMORY, STORE, NODES, STAGING = "memory", "store", "nodes", "staging"
"""Sources beside the tiers of the cache, which go by their names."""


class Origins:
    """Bytes by source that one request has got so far. Tasks that it has begun are others' as well, and do not count."""

    __slots__ = ("_task", "bytes")

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self._task = trio.lowlevel.current_task()

    def add(self, source: str, size: int) -> None:
        """Count bytes, if the request's own task gets them."""
        if trio.lowlevel.current_task() is self._task:
            self.bytes[source] = self.bytes.get(source, 0) + size


_wanted: ContextVar[Origins | None] = ContextVar("origins", default=None)


def watch() -> tuple[Origins, Token[Origins | None]]:
    """Have the bytes counted that this task gets from now on, until `forget`."""
    origins = Origins()
    return origins, _wanted.set(origins)


def forget(token: Token[Origins | None]) -> None:
    """End what `watch` began."""
    _wanted.reset(token)


def tell(source: str, size: int) -> None:
    """Say where bytes came from that are about to be returned."""
    origins = _wanted.get()
    if origins is not None:
        origins.add(source, size)
