"""The status document as Prometheus text."""

from __future__ import annotations

from typing import Any, get_args

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from luxfuse.control import metrics
from luxfuse.control.status import Status
from tests.unit.control.samples import documented, fields, sample_status

ELSEWHERE = ("latency", "volumes", "peers", "node")
"""Parts of the status that are no plain numbers: histograms, counts by state, and what /metrics does not have."""


def render(status: Any) -> str:
    return metrics.render(status)[0].decode()


def samples(status: Any) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(render(status)):
        for sample in family.samples:
            found[sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_the_sample_has_every_documented_field() -> None:
    assert set(fields(sample_status(), Status)) == {path for path, _ in documented(Status)}


def test_every_documented_number_has_help_and_is_of_one_kind() -> None:
    """A number without a line in the tables is exported all the same, as a gauge that explains itself by its name."""
    numbers = {
        path.strip("/").replace("tiers/*", "tier").replace("/", "_")
        for path, kind in documented(Status)
        if {kind, *get_args(kind)} & {int, float, bool} and path.split("/")[1] not in ELSEWHERE
    }
    known = [*metrics._COUNTERS, *metrics._GAUGES]
    assert sorted(known) == sorted({*known}), "twice"
    assert sorted({*known} - {"tier_ok"}) == sorted(numbers), "tier_ok is made of a tier's state"


def test_every_number_is_there() -> None:
    found = samples(sample_status())
    assert found["luxfuse_mount_info|obstore|/mnt/bucket|s3://bucket|0.1.0"] == 1
    assert found["luxfuse_state|serving"] == 1
    assert found["luxfuse_state|degraded"] == 0
    assert found["luxfuse_passthrough"] == 1
    assert found["luxfuse_uptime_seconds"] == 3700.5
    assert found["luxfuse_understore_gets_total"] == 5
    assert found["luxfuse_understore_cost"] == 0.01234
    assert found["luxfuse_reads_understore_bytes_total"] == 30
    assert found["luxfuse_cache_objects"] == 9
    assert found["luxfuse_dirty_oldest_seconds"] == 0
    assert found["luxfuse_tier_used_bytes|/c|ssd"] == 1 << 29
    assert found["luxfuse_tier_ok|/c|ssd"] == 1


def test_latencies_are_histograms() -> None:
    found = samples(sample_status())
    assert found["luxfuse_request_seconds_bucket|get|0.001"] == 1
    assert found["luxfuse_request_seconds_bucket|get|0.01"] == 4
    assert found["luxfuse_request_seconds_bucket|get|+Inf"] == 6
    assert found["luxfuse_request_seconds_count|get"] == 6
    assert found["luxfuse_request_seconds_sum|get"] == 0.05
    assert found["luxfuse_fuse_request_seconds_count|read"] == 1
    assert not [name for name in found if "latency" in name]
    assert "# TYPE luxfuse_request_seconds histogram" in render(sample_status())


def test_types_and_help() -> None:
    text = render(sample_status())
    assert "# TYPE luxfuse_understore_gets_total counter" in text
    assert "# TYPE luxfuse_cache_objects gauge" in text
    assert "# HELP luxfuse_understore_gets_total GET requests to the bucket, retries included." in text


def test_an_unknown_number_is_a_gauge() -> None:
    status: dict[str, Any] = {**sample_status(), "novelty": {"depth": 3, "lag_s": 1.5, "name": "x"}}
    found = samples(status)
    assert found["luxfuse_novelty_depth"] == 3
    assert found["luxfuse_novelty_lag_seconds"] == 1.5


def test_a_tier_without_capacity_and_with_an_odd_path() -> None:
    status = sample_status()
    status["tiers"][0]["capacity_bytes"] = None
    status["tiers"][0]["path"] = '/a"b\\c'
    status["tiers"][0]["state"] = "failed"
    found = samples(status)
    assert found['luxfuse_tier_ok|/a"b\\c|ssd'] == 0
    assert not [name for name in found if "capacity" in name]


def test_nodes_are_counted_by_state() -> None:
    found = samples(sample_status())
    states = ("alive", "suspect", "dead", "left")
    assert [found[f"luxfuse_peers|{state}"] for state in states] == [1, 1, 1, 0]
    assert not [name for name in found if "node" in name]
    alone = samples({**sample_status(), "node": None, "peers": []})
    assert [alone[f"luxfuse_peers|{state}"] for state in states] == [0, 0, 0, 0]


def test_openmetrics_has_units_and_ends() -> None:
    content, media_type = metrics.render(sample_status(), "application/openmetrics-text")
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(content.decode())}
    assert families["luxfuse_reads_understore_bytes"].unit == "bytes"
    assert families["luxfuse_uptime_seconds"].unit == "seconds"
    assert families["luxfuse_request_seconds"].unit == "seconds"
    assert content.endswith(b"# EOF\n")


def test_every_number_has_help_of_its_own() -> None:
    spelled = [
        name
        for name, _ in metrics._numbers(
            "", {key: value for key, value in sample_status().items() if key not in metrics._NO_NUMBERS}
        )
    ]
    tiers = ["tier_capacity_bytes", "tier_used_bytes"]
    assert [name for name in (*spelled, *tiers) if name not in {**metrics._COUNTERS, **metrics._GAUGES}] == []
