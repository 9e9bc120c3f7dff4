"""Bandwidth limits of parts of a mount: each transfer waits for a turn of its path.

A turn is waited for before anything is held that others need: memory, a thread, room, a place among the uploads. So a path
that is held to a low rate takes nothing away from the others. The limit of the whole store comes after it, see `Calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from luxfuse.understore.throttle import Throttle


class BandwidthTurns:
    """The limits of one direction, by name: names that stay the same when the limits change. `run` it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._throttles: dict[str, Throttle] = {}
        self._shared_by: Callable[[str], str | None] = lambda _key: None
        self._nursery: trio.Nursery | None = None

    def replace(self, limits: Mapping[str, int], shared_by: Callable[[str], str | None]) -> None:
        """From now on these limits hold, in bytes a second, also for waiting transfers.

        ``shared_by``: the name of an object's limit, by its key.
        """
        for name in self._throttles.keys() - limits.keys():
            self._throttles.pop(name).close()
        for name, bytes_s in limits.items():
            if name in self._throttles:
                self._throttles[name].set_rate(bytes_s)
            else:
                self._throttles[name] = Throttle(bytes_s, self._clock)
                if self._nursery is not None:
                    self._nursery.start_soon(self._throttles[name].run)
        self._shared_by = shared_by

    def of(self, key: str) -> Throttle | None:
        """Return the limit of an object, by its key."""
        if not self._throttles:
            return None
        name = self._shared_by(key)
        return None if name is None else self._throttles[name]

    @property
    def holding(self) -> int:
        """The number of transfers that wait for a turn."""
        return sum(throttle.holding for throttle in self._throttles.values())

    async def run(self) -> None:
        """Let transfers go when it is their turn; until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for throttle in self._throttles.values():
                nursery.start_soon(throttle.run)
            await trio.sleep_forever()
