"""What a collector gets over HTTP: spans, and the figures of /metrics under the same names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ddib_fed.server.metrics import Metrics
from ddib_fed.telemetry.opening import node_telemetry
from ddib_fed.telemetry.settings import NodeTelemetry

KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.got: list[tuple[str, object]] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, path: str) -> list[object]:
        return [message for sent, message in self.got if sent == path]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, KINDS[self.path].FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """The environment names a proxy, which is not used, and things to add to a resource, which are not."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=secret-host")
    made = Collector()
    yield made
    made.shutdown()
    made.server_close()


def test_a_node_sends_spans_and_metrics_and_what_is_left_at_its_end(collector: Collector) -> None:
    """Whose they are is the institution and the roles, and nothing of the machine."""
    metrics = Metrics()
    metrics.items.labels("decode", "ok").inc(3)
    for seconds in (0.07, 0.3, 0.3, 4_000.0):
        metrics.seconds.labels("decode").observe(seconds)
    settings = NodeTelemetry(endpoint=collector.url, metrics_every_s=3600)
    sent = node_telemetry(settings, metrics.registry, institution="south.example", roles=("target",))
    with sent.tracing.span("decode", kind="server", values={"peer": "north.example"}):
        pass
    sent.close()
    (spans,), (figures,) = collector.of("/v1/traces"), collector.of("/v1/metrics")
    (resource_spans,), (resource_metrics,) = spans.resource_spans, figures.resource_metrics
    for part in (resource_spans, resource_metrics):
        named = {each.key: each.value.string_value for each in part.resource.attributes}
        assert named.pop("service.version")
        assert named == {"service.name": "ddib-fed-target", "service.namespace": "south.example"}
    (span,) = resource_spans.scope_spans[0].spans
    assert (span.name, span.attributes[0].key, span.attributes[0].value.string_value) == (
        "decode", "ddib.peer", "north.example",
    )  # fmt: skip
    found = {each.name: each for each in resource_metrics.scope_metrics[0].metrics}
    assert set(found) == {family.name for family in metrics.registry.collect()}
    (items,) = found["ddib_items"].sum.data_points
    assert items.as_double == 3
    assert {each.key: each.value.string_value for each in items.attributes} == {
        "stage": "decode",
        "outcome": "ok",
    }
    assert found["ddib_items"].sum.is_monotonic
    (seconds,) = found["ddib_stage_seconds"].histogram.data_points
    assert (seconds.count, round(seconds.sum, 2)) == (4, 4000.67)
    assert list(seconds.explicit_bounds)[:4] == [0.05, 0.1, 0.25, 0.5]
    assert list(seconds.bucket_counts) == [0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert not seconds.HasField("min")


def test_a_collector_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A span costs a moment, the end waits some seconds at most, and the log says it."""
    settings = NodeTelemetry(endpoint="http://127.0.0.1:1", metrics_every_s=0)
    sent = node_telemetry(settings, Metrics().registry, institution="south.example", roles=("target",))
    with sent.tracing.span("decode"):
        pass
    sent.close()
    assert "127.0.0.1" in caplog.text or "Connection" in caplog.text
