"""Sends the metrics by OTLP/HTTP to an OpenTelemetry collector, with the libraries of the extra ``luxfuse[otlp]``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import trio
from prometheus_client.core import Metric as Family

from luxfuse import __version__
from luxfuse.control import metrics
from luxfuse.errors import ConfigError
from luxfuse.understore.failures import safe_url

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric, MetricsData

log = logging.getLogger(__name__)

EXPORT_S = 15.0
TIMEOUT_S = 10.0
_UNITS = {"bytes": "By", "seconds": "s"}
_PATH = "/v1/metrics"


class Export:
    """The export of one mount."""

    def __init__(self, url: str, status: Callable[[], Mapping[str, Any]]) -> None:
        """``url``: of the collector, without /v1/metrics; ``status``: returns the status document.

        Headers, such as a token, come from OTEL_EXPORTER_OTLP_HEADERS. Raises `ConfigError` where libraries are missing.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.metrics.export import MetricExportResult
        except ImportError as exc:
            raise ConfigError(
                f"--otlp: the libraries for it are missing ({exc.name}); pip install 'luxfuse[otlp]'"
            ) from None
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what fails is told here, once
        self._shown = safe_url(url)
        self._exporter = OTLPMetricExporter(endpoint=url.rstrip("/") + _PATH, timeout=TIMEOUT_S)
        self._success = MetricExportResult.SUCCESS
        self._status = status
        self._start_ns = time.time_ns()
        self._failing = False

    async def run(self) -> None:
        """Send until cancelled. A collector that cannot be reached is told in the log once, and when it is back."""
        while True:
            try:
                done = await trio.to_thread.run_sync(self.send, self._status(), abandon_on_cancel=True)
            except Exception:
                log.exception("sending metrics failed in an unexpected way")
                done = False
            if done is self._failing:
                level = logging.INFO if done else logging.WARNING
                what = "are taken again" if done else "cannot be sent, and are lost until they can; it is tried again"
                log.log(level, "metrics for %s %s", self._shown, what)
            self._failing = not done
            await trio.sleep(EXPORT_S)

    def send(self, status: Mapping[str, Any]) -> bool:
        """Send the metrics of a status document; returns whether the collector took them. It waits: for a thread."""
        return self._exporter.export(metrics_data(status, self._start_ns, time.time_ns())) is self._success


def metrics_data(status: Mapping[str, Any], start_ns: int, now_ns: int) -> MetricsData:
    """Return the metrics of a status document as OTLP has them; ``start_ns``: since when counters count."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    resource = Resource.create({
        "service.name": "luxfuse", "service.version": __version__, "service.instance.id": str(status["mountpoint"]),
        "luxfuse.source": str(status["source"]),
    })  # fmt: skip
    found = [_metric(family, start_ns, now_ns) for family in metrics.families(status)]
    scope = ScopeMetrics(InstrumentationScope("luxfuse", __version__), found, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(family: Family, start_ns: int, now_ns: int) -> Metric:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, NumberDataPoint, Sum

    data: Gauge | Sum | Histogram
    if family.type == "histogram":
        data = Histogram(list(_histograms(family, start_ns, now_ns)), AggregationTemporality.CUMULATIVE)
    else:
        points = [NumberDataPoint(each.labels, start_ns, now_ns, each.value) for each in family.samples]
        cumulative = AggregationTemporality.CUMULATIVE
        data = Sum(points, cumulative, True) if family.type == "counter" else Gauge(points)
    return Metric(family.name, family.documentation, _UNITS.get(family.unit, "1"), data)


def _histograms(family: Family, start_ns: int, now_ns: int) -> Iterable[Any]:
    """Yield a point for each kind of request; Prometheus has counts up to each bound, OTLP those between two."""
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    by_kind: dict[str, dict[str, float]] = {}
    for each in family.samples:
        name = each.name.removeprefix(family.name) + each.labels.get("le", "")
        by_kind.setdefault(each.labels["kind"], {})[name] = each.value
    for kind, values in by_kind.items():
        bounds = [name.removeprefix("_bucket") for name in values if name.startswith("_bucket")]
        totals = [int(values[f"_bucket{bound}"]) for bound in bounds]
        counts = [now - before for now, before in zip(totals, [0, *totals[:-1]], strict=True)]
        edges = [float(bound) for bound in bounds[:-1]]
        shortest: Any = None  # nobody has noted them
        longest: Any = None
        yield HistogramDataPoint(
            {"kind": kind}, start_ns, now_ns, totals[-1], values["_sum"], counts, edges, shortest, longest
        )
