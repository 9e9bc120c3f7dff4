"""What the descriptors of this process are for: of those that it may have, so many of each kind may be open.

All shares together leave some: there are databases, logs, the kernel's device, other nodes, and files that are open for a
moment. The limit may be changed from outside at any time, so it is asked for each time.
"""

from __future__ import annotations

import resource
from functools import lru_cache
from typing import NamedTuple

KEPT_FREE = 128
"""Those that files handed to the kernel leave to all else, before they take their share."""


class Shares(NamedTuple):
    """How many of each kind."""

    staged: int
    """Staging files that stay open: others are opened again by their paths."""
    spares: int
    """Staging files made ahead."""
    registered: int
    """Files handed to the kernel, of one mount."""
    lent: int
    """Files lent to the lanes, of one mount."""
    requests: int
    """Requests to one under-store at once, of each sort: bulk requests, other calls, writes; and idle connections of C."""


def limit() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shares() -> Shares:
    """Return how many of each kind this process may have open."""
    return shares_of(limit())


@lru_cache(maxsize=4)
def shares_of(most: int) -> Shares:
    """Return how many of each kind may be open, of so many in all."""
    if most < 0:  # RLIM_INFINITY
        most = 1 << 30
    return Shares(
        staged=min(4096, max(16, most // 8)),
        spares=min(32, max(4, most // 16)),
        registered=min(16_384, max(8, (most - KEPT_FREE) // 3)),
        lent=most // 5,
        requests=max(8, most // 16),
    )
