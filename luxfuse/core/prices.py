"""The costs of requests to a store, by a price table."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

GB = 10**9


def cost_text(cost: float, currency: str) -> str:
    """Return a cost for people: ``about 0.0123 USD``, with three digits that tell something."""
    digits = 2 if cost >= 1 or cost == 0 else min(9, 2 - math.floor(math.log10(cost)))
    return f"about {cost:.{digits}f} {currency} since the mount"


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices in ``currency``: of 1,000 requests of a kind, and of a GB (10^9 bytes) received or sent."""

    get: float = 0.0
    put: float = 0.0
    list: float = 0.0
    head: float = 0.0
    delete: float = 0.0
    get_gb: float = 0.0
    put_gb: float = 0.0
    currency: str = "USD"

    def cost(self, requests: Mapping[str, int], get_bytes: int, put_bytes: int) -> float:
        """Return the cost of so many requests, by kind, and bytes."""
        by_request = (
            self.get * requests["get"] + self.put * requests["put"] + self.list * requests["list"]
            + self.head * requests["head"] + self.delete * requests["delete"]
        )  # fmt: skip
        return by_request / 1000 + (self.get_gb * get_bytes + self.put_gb * put_bytes) / GB
