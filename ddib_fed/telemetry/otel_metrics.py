"""The metrics of /metrics for an OpenTelemetry collector: the same figures under the same names, sent now and then.

There is one place where things are counted, the registry of Prometheus' client; it is read here, not counted again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from ddib_fed.extras import extra
from ddib_fed.telemetry.otel import EXPORT_TIMEOUT_S, session
from ddib_fed.version import __version__

with extra("otel", "opentelemetry-exporter-otlp-proto-http", "[telemetry] needs OpenTelemetry"):
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        HistogramDataPoint,
        Metric,
        MetricsData,
        NumberDataPoint,
        ResourceMetrics,
        ScopeMetrics,
        Sum,
    )
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger(__name__)
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


class Registry(Protocol):
    """What is read of prometheus_client's registry."""

    def collect(self) -> Iterable[Any]:
        """The families: counters, gauges and histograms."""


def metrics_data(registry: Registry, of: Resource, started_ns: int) -> MetricsData:
    """Everything that is counted now."""
    now = time.time_ns()
    found = [_metric(family, started_ns, now) for family in registry.collect()]
    scope = ScopeMetrics(InstrumentationScope("ddib_fed", __version__), [each for each in found if each], "")
    return MetricsData([ResourceMetrics(of, [scope], "")])


def _metric(family: Any, start: int, now: int) -> Metric | None:
    data: Sum | Gauge | Histogram
    if family.type == "histogram":
        data = Histogram(_histograms(family, start, now), _CUMULATIVE)
    elif family.type == "counter":
        totals = [each for each in family.samples if each.name.endswith("_total")]
        data = Sum(
            [NumberDataPoint(each.labels, start, now, each.value) for each in totals], _CUMULATIVE, True
        )
    elif family.type == "gauge":
        data = Gauge([NumberDataPoint(each.labels, start, now, each.value) for each in family.samples])
    else:
        return None
    return Metric(family.name, family.documentation, "", data)


def _histograms(family: Any, start: int, now: int) -> list[HistogramDataPoint]:
    """One point for each set of labels: Prometheus' buckets count up, OpenTelemetry's count each for itself."""
    counts: dict[frozenset[tuple[str, str]], dict[float, int]] = defaultdict(dict)
    sums: dict[frozenset[tuple[str, str]], float] = {}
    for each in family.samples:
        labels = frozenset((name, value) for name, value in each.labels.items() if name != "le")
        if each.name.endswith("_bucket"):
            counts[labels][float(each.labels["le"])] = int(each.value)
        elif each.name.endswith("_sum"):
            sums[labels] = each.value
    return [_point(dict(labels), found, sums[labels], start, now) for labels, found in counts.items()]


def _point(
    labels: Mapping[str, str], counts: Mapping[float, int], total: float, start: int, now: int
) -> HistogramDataPoint:
    bounds = sorted(counts)
    upto = [counts[bound] for bound in bounds]
    own = [high - low for low, high in zip([0, *upto], upto, strict=False)]
    finite = [bound for bound in bounds if math.isfinite(bound)]
    return HistogramDataPoint(
        labels,
        start,
        now,
        upto[-1],
        total,
        own,
        finite,
        min=None,  # not known, which the protocol allows
        max=None,
    )


class MetricsSender:
    """Sends the metrics of a registry from a thread of its own, and once more at the end."""

    def __init__(self, exporter: MetricExporter, registry: Registry, of: Resource, every_s: float) -> None:
        self._exporter, self._registry, self._of, self._every_s = exporter, registry, of, every_s
        self._started_ns = time.time_ns()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def send(self) -> None:
        """Send them now; a failure is in the log."""
        try:
            self._exporter.export(
                metrics_data(self._registry, self._of, self._started_ns),
                timeout_millis=1000 * EXPORT_TIMEOUT_S,
            )
        except Exception:
            log.exception("the metrics could not be sent")

    def close(self) -> None:
        """Send them once more, and end."""
        self._over.set()
        self._thread.join(timeout=2 * EXPORT_TIMEOUT_S)
        self._exporter.shutdown(timeout_millis=1000 * EXPORT_TIMEOUT_S)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self.send()
        self.send()


def otlp_metrics(endpoint: str, registry: Registry, of: Resource, every_s: float) -> MetricsSender:
    exporter = OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=EXPORT_TIMEOUT_S, session=session())
    return MetricsSender(exporter, registry, of, every_s)
