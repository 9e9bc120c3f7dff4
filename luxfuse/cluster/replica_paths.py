"""How nodes talk about replicas of writes."""

from __future__ import annotations

PATH = "/v1/replicas"
ORDERS_PATH = "/v1/replicas/orders"
BATCH = 500
"""Files that one order speaks of, at most."""
