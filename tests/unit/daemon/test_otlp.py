"""Metrics that are sent by OTLP, as a collector receives them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from luxfuse.control import metrics
from luxfuse.daemon import otlp
from luxfuse.errors import ConfigError
from tests.support.collector import Collector, collecting
from tests.unit.control.samples import sample_status

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="luxfuse[otlp] is not installed")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def test_a_collector_gets_all_metrics(collector: Collector) -> None:
    assert otlp.Export(collector.url, sample_status).send(sample_status())  # type: ignore[arg-type]
    ((path, request),) = collector.received
    assert path == "/v1/metrics"
    (resource,) = request.resource_metrics
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert named["service.name"] == "luxfuse"
    assert named["service.instance.id"] == "/mnt/bucket"
    found = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert set(found) == {family.name for family in metrics.families(sample_status())}
    gets = found["luxfuse_understore_gets"]
    assert gets.sum.is_monotonic
    assert gets.sum.data_points[0].as_double == 5
    assert found["luxfuse_uptime_seconds"].unit == "s"
    assert found["luxfuse_reads_understore_bytes"].unit == "By"
    assert found["luxfuse_uptime_seconds"].gauge.data_points[0].as_double == 3700.5
    (requests,) = found["luxfuse_request_seconds"].histogram.data_points
    assert (requests.count, requests.sum) == (6, 0.05)
    assert list(requests.bucket_counts) == [1, 3, 2]
    assert list(requests.explicit_bounds) == [0.001, 0.01]
    assert not requests.HasField("min"), "nobody has noted the shortest"
    assert not requests.HasField("max")


async def test_an_outage_of_the_collector_is_told_once(
    monkeypatch: pytest.MonkeyPatch, expected_logs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs.append("cannot be sent, and are lost until they can")
    monkeypatch.setattr(otlp, "EXPORT_S", 0.001)
    export = otlp.Export("http://127.0.0.1:4318", sample_status)  # type: ignore[arg-type]
    answers = [True, False, False, True, True]
    with caplog.at_level("INFO", "luxfuse.daemon.otlp"), trio.fail_after(60), trio.CancelScope() as sending:

        def send(_status: object) -> bool:
            if len(answers) == 1:
                trio.from_thread.run_sync(sending.cancel)
            return answers.pop(0)

        monkeypatch.setattr(export, "send", send)
        await export.run()
    first, second = [record.getMessage() for record in caplog.records if record.name == "luxfuse.daemon.otlp"]
    assert first == "metrics for http://127.0.0.1:4318 cannot be sent, and are lost until they can; it is tried again"
    assert second == "metrics for http://127.0.0.1:4318 are taken again"


async def test_a_mistake_ends_nothing_and_a_login_is_not_told(
    monkeypatch: pytest.MonkeyPatch, expected_logs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs += ["sending metrics failed in an unexpected way", "cannot be sent, and are lost until they can"]
    monkeypatch.setattr(otlp, "EXPORT_S", 0.001)
    asked = 0

    with trio.fail_after(60), trio.CancelScope() as sending:

        def status() -> dict[str, Any]:
            nonlocal asked
            asked += 1
            if asked > 2:
                sending.cancel()
            raise KeyError("tiers")

        await otlp.Export("http://me:hush@127.0.0.1:4318", status).run()
    assert asked > 2
    assert "hush" not in caplog.text


def test_without_the_libraries_the_way_to_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    with pytest.raises(ConfigError, match=r"--otlp: the libraries for it are missing .*; pip install 'luxfuse\[otlp\]'"):
        otlp.Export("http://127.0.0.1:4318", sample_status)  # type: ignore[arg-type]
