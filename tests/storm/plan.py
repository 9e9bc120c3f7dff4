"""What is broken in a storm, and when: drawn from a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STORE = ("errors", "throttled", "refused", "black hole", "slow", "resets", "truncated", "stalled", "trickle", "forbidden")
"""Ways in which the under-store fails, and (`WINDOWS`) what is allowed meanwhile."""
GUARDS = ("name", "certificate", "TLS", "expired")
"""Further ones, of a `GuardedProxy`: the name does not resolve, another certificate or no TLS is there, the key expires."""
WINDOWS = {"forbidden": "refused", "expired": "refused"}
CALM_S = (2.0, 6.0)
STORE_S = (1.0, 8.0)
DISK_S = (1.0, 6.0)
DISK_EVERY_S = (8.0, 20.0)


@dataclass(frozen=True)
class Break:
    """From ``at`` (seconds from the beginning) for ``seconds`` something is broken."""

    at: float
    seconds: float
    what: str


@dataclass(frozen=True)
class Plan:
    """A storm: one thing at a time of each kind. ``kills``: seconds that a daemon serves before it is killed.

    It ends after so many seconds, or with the last kill if there are kills.
    """

    seconds: float
    kills: Sequence[float]
    store: Sequence[Break]
    disk: Sequence[Break]

    @property
    def guarded(self) -> bool:
        """Whether it needs a `GuardedProxy`."""
        return any(each.what in GUARDS for each in self.store)


def draw(
    seed: int, seconds: float, *, kills: int, kill_every_s: float, store: Sequence[str] = STORE, disk: bool = True
) -> Plan:
    """Draw a storm. ``kills``: how many at most, so far apart on average; ``store``: the ways in which it fails."""
    rng = random.Random(f"storm {seed}")
    lives = [rng.uniform(0.2, 1.8) * kill_every_s for _ in range(kills)]
    return Plan(
        seconds, lives, list(_breaks(rng, seconds, store, CALM_S, STORE_S)),
        list(_breaks(rng, seconds, ("full",) if disk else (), DISK_EVERY_S, DISK_S)),
    )  # fmt: skip


def _breaks(
    rng: random.Random, seconds: float, ways: Sequence[str], calm_s: tuple[float, float], lasts_s: tuple[float, float]
) -> Iterator[Break]:
    at, left = rng.uniform(*calm_s), list[str]()
    while ways and at < seconds:
        if not left:  # each once before one comes again
            left = rng.sample(list(ways), len(ways))
        lasts = min(rng.uniform(*lasts_s), seconds - at)
        yield Break(at, lasts, left.pop())
        at += lasts + rng.uniform(*calm_s)
