"""What a mount did over time: rates, percentiles and fill levels, made of status documents, in rings of fixed length."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping
from typing import Any

from luxfuse.core.histogram import Histogram
from luxfuse.types import TIERS

RATES = {
    "memory": ("reads", "memory_bytes"),
    "ssd": ("reads", "ssd_bytes"),
    "hdd": ("reads", "hdd_bytes"),
    "peer": ("reads", "peer_bytes"),
    "understore": ("reads", "understore_bytes"),
    "dataplane": ("reads", "dataplane_bytes"),
    "passthrough_opens": ("reads", "passthrough_opens"),
    "dataplane_opens": ("reads", "dataplane_opens"),
    "copied_opens": ("reads", "copied_opens"),
    "store_in": ("understore", "get_bytes"),
    "store_out": ("understore", "put_bytes"),
    "store_errors": ("understore", "errors"),
    "requests": ("fuse", "requests"),
    "refusals": ("fuse", "refusals"),
    "errors": ("fuse", "errors"),
    "evicted": ("cache", "evicted_bytes"),
}
"""Series that are a counter's rise in a second: where the counter is in a status document."""
LATENCIES = {"fuse": "fuse", "store": "understore"}
"""Sides whose percentiles are series: ``fuse_p50`` and so on, in seconds, of all kinds of requests together."""
PERCENTILES = (50, 95, 99)
LEVELS = ("dirty_bytes", "dirty_files", *(f"cached_{tier}" for tier in TIERS), "memory_bytes")
SERIES = (*RATES, *(f"{side}_p{percent}" for side in LATENCIES for percent in PERCENTILES), *LEVELS)


class _Counters:
    """The numbers of one status document that later ones are compared with."""

    __slots__ = ("at_s", "latencies", "pid", "values")

    def __init__(self, at_s: float, status: Mapping[str, Any]) -> None:
        self.at_s = at_s
        self.pid = status["pid"]
        self.values = [status[group][name] for group, name in RATES.values()]
        self.latencies = [_all_kinds(status["latency"][side]) for side in LATENCIES.values()]


def _all_kinds(described: Mapping[str, Any]) -> Histogram:
    if not described:
        return Histogram()
    counts = [sum(column) for column in zip(*(each["buckets"] for each in described.values()), strict=True)]
    return Histogram(counts, sum(each["sum_s"] for each in described.values()))


class Ring:
    """The last ``most`` samples, one each ``step_s`` seconds, each with the numbers of `SERIES` and its wall-clock time."""

    def __init__(self, step_s: float, most: int) -> None:
        self.step_s = step_s
        self._samples: deque[array[float]] = deque(maxlen=most)
        self._before: _Counters | None = None

    def feed(self, now_s: float, wall_s: float, status: Mapping[str, Any]) -> None:
        """Take in a status document of ``now_s``, of any clock; a sample is made when a step is over."""
        before = self._before
        if before is not None and now_s - before.at_s < 0.9 * self.step_s:
            return
        counters = self._before = _Counters(now_s, status)
        if before is None or before.pid != counters.pid:
            return
        elapsed_s = now_s - before.at_s
        sample = array("d", [round(wall_s, 1)])
        sample.extend(
            _rounded(max(0, now - then) / elapsed_s) for now, then in zip(counters.values, before.values, strict=True)
        )
        for now, then in zip(counters.latencies, before.latencies, strict=True):
            recent = now.since(then)
            sample.extend(_rounded(recent.quantile(percent / 100) or 0.0) for percent in PERCENTILES)
        cached = [sum(each["used_bytes"] for each in status["tiers"] if each["name"] == tier) for tier in TIERS]
        sample.extend((status["dirty"]["bytes"], status["dirty"]["files"], *cached, status["memory_bytes"]))
        self._samples.append(sample)

    def document(self) -> dict[str, object]:
        """Return ``step_s``, the samples' ``times`` (wall clock) and ``series``: by name a number for each of the times."""
        columns = list(zip(*self._samples, strict=True)) or [()] * (len(SERIES) + 1)
        return {"step_s": self.step_s, "times": columns[0], "series": dict(zip(SERIES, columns[1:], strict=True))}


def _rounded(value: float) -> float:
    """Return a number with four digits, as a picture needs no more."""
    return float(f"{value:.4g}")
