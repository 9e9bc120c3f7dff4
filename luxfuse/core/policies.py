"""The eviction policies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from luxfuse.core.eviction import Lrfu, Lru, Policy
from luxfuse.core.tinylfu import TinyLfu

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType({"tinylfu": TinyLfu, "lru": Lru, "lrfu": Lrfu})
DEFAULT_POLICY = "tinylfu"
