"""Rates and recent latencies out of status documents."""

from __future__ import annotations

import copy
from typing import Any

from luxfuse.cli.stats import Sampler, rows
from luxfuse.core.histogram import Histogram
from tests.unit.control.samples import sample_status

MIB = 1 << 20


def described(*seconds: float) -> dict[str, Any]:
    histogram = Histogram()
    for each in seconds:
        histogram.observe(each)
    return {"count": histogram.count, "sum_s": histogram.sum_s, "buckets": histogram.counts}


def document(**changes: Any) -> dict[str, Any]:
    status: dict[str, Any] = copy.deepcopy(dict(sample_status()))
    status["latency"] = {"bounds_s": [], "understore": {}, "fuse": {}}
    for group, values in changes.items():
        status[group].update(values)
    return status


def test_rates_are_those_of_the_last_interval() -> None:
    sampler = Sampler()
    sampler.feed(0.0, document())
    assert sampler.rate("reads", "memory_bytes") == 0
    sampler.feed(2.0, document(reads={"memory_bytes": 10 + 4 * MIB}))
    assert sampler.rate("reads", "memory_bytes") == 2 * MIB
    sampler.feed(3.0, document(reads={"memory_bytes": 10 + 4 * MIB, "ssd_bytes": 20 + MIB, "passthrough_opens": 103}))
    assert sampler.rate("reads", "memory_bytes") == 0
    shown = dict(rows(sampler))
    assert shown["reads"] == "0 B/s memory, 1.0 MiB/s ssd, 0 B/s understore"
    assert shown["opens"] == "100/s passthrough, 0/s by the data plane, 0/s copied"
    assert shown["cache (ssd)"] == "512.0 MiB of 1.0 GiB (50 %) in /c"
    assert shown["not uploaded"] == "nothing"


def test_latencies_are_those_of_the_last_seconds() -> None:
    sampler = Sampler()
    slow = (2.0,) * 50
    sampler.feed(0.0, document(latency={"understore": {"get": described(*slow)}}))
    assert sampler.latencies("understore")["get"][1].count == 50  # of all the time, as there is no other yet
    for second in range(1, 15):
        fast = (0.001,) * 10 * second
        sampler.feed(float(second), document(latency={
            "understore": {"get": described(*slow, *fast), "head": described(0.02)}, "fuse": {"read": described(*fast)},
        }))  # fmt: skip
    ((kind, (rate, recent)),) = sampler.latencies("understore").items()
    assert (kind, rate, recent.count) == ("get", 10.0, 100)
    quantile = recent.quantile(0.99)
    assert quantile is not None
    assert quantile < 0.002
    shown = dict(rows(sampler))
    assert shown["  get"].startswith("10.0/s, p50 0.")
    assert shown["  read"].startswith("10.0/s, p50 0.")


def test_another_daemon_begins_anew_and_troubles_are_told() -> None:
    sampler = Sampler()
    sampler.feed(0.0, document(reads={"memory_bytes": 100}))
    other = document(
        understore={"state": "unreachable"}, dirty={"files": 2, "bytes": MIB, "deletes": 1, "failing": 1, "error": "503"}
    )
    other.update(pid=43, state="degraded", degraded_reasons=["the under-store cannot be reached"])
    sampler.feed(1.0, other)
    assert sampler.rate("reads", "memory_bytes") == 0
    shown = dict(rows(sampler))
    assert shown["state"].startswith("degraded: the under-store cannot be reached, up ")
    assert shown["under-store"].endswith("unreachable")
    assert shown["not uploaded"] == "2 files (1.0 MiB), 1 delete, 1 failed when last tried: 503"
