"""The bandwidth limits of one store: that of all its requests, and those that rules set for parts of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import trio

from luxfuse.core.rules import PathPolicies, RateName
from luxfuse.understore.statistics import RequestKind
from luxfuse.understore.throttle import Throttle
from luxfuse.understore.turns import BandwidthTurns

Transfer = Literal["get", "put"]

_RATES: dict[Transfer, RateName] = {"get": "bandwidth_limit_bytes_s", "put": "upload_bandwidth_limit_bytes_s"}


class Limits:
    """The methods of a `Store` that hold transfers back."""

    def __init__(self, clock: Callable[[], float], get_bytes_s: int | None, put_bytes_s: int | None) -> None:
        limits: dict[RequestKind, int | None] = {"get": get_bytes_s, "put": put_bytes_s}
        self._throttles = {kind: Throttle(limit, clock) for kind, limit in limits.items()}
        self._turns: dict[RequestKind, BandwidthTurns] = {kind: BandwidthTurns(clock) for kind in _RATES}

    def set_bandwidth(self, *, get_bytes_s: int | None, put_bytes_s: int | None) -> None:
        """Change the most bytes a second to receive and to send; None: any number."""
        self._throttles["get"].set_rate(get_bytes_s)
        self._throttles["put"].set_rate(put_bytes_s)

    def follow_rules(self, policies: PathPolicies, path_of: Callable[[str], str]) -> None:
        """From now on the limits of these rules hold beside that of the whole store; ``path_of``: the path of a key."""
        for kind, name in _RATES.items():
            self._turns[kind].replace(
                policies.rates(name),
                lambda key, name=name: policies.rate_of(name, path_of(key)),  # type: ignore[misc]
            )

    async def turn(self, kind: Transfer, key: str, size_bytes: int, *, background: bool = False) -> None:
        """Wait until the rules let so many bytes of an object go; before anything is held that others need.

        Every transfer of content asks for this first, or for `try_turn`.
        """
        throttle = self._turns[kind].of(key)
        if throttle is not None:
            await throttle.wait(size_bytes, background=background)

    def try_turn(self, kind: Transfer, key: str, size_bytes: int) -> bool:
        """Whether the rules let so many bytes go now; they are counted then."""
        throttle = self._turns[kind].of(key)
        return throttle is None or throttle.try_admit(size_bytes)

    def admit_turn(self, kind: Transfer, key: str, size_bytes: int, go: Callable[[], None], *, background: bool) -> None:
        """Call ``go`` when the rules let so many bytes go: at once, or in the event loop later."""
        throttle = self._turns[kind].of(key)
        if throttle is None:
            go()
        else:
            throttle.admit(size_bytes, go, background=background)

    def charge_turn(self, kind: RequestKind, key: str, size_bytes: int) -> None:
        """Count bytes that go once more."""
        throttle = self._turns[kind].of(key) if kind in self._turns else None
        if throttle is not None:
            throttle.charge(size_bytes)

    def held_back(self, kind: Transfer) -> int:
        """The number of transfers that wait for a `turn`."""
        return self._turns[kind].holding

    def _throttle(self, kind: RequestKind) -> Throttle | None:
        throttle = self._throttles.get(kind)
        return throttle if throttle is not None and throttle.limited else None

    async def _run_limits(self) -> None:
        """Let those go that a limit holds back; until cancelled."""
        async with trio.open_nursery() as nursery:
            for throttle in self._throttles.values():
                nursery.start_soon(throttle.run)
            for turns in self._turns.values():
                nursery.start_soon(turns.run)
