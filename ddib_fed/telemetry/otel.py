"""Spans for an OpenTelemetry collector, over HTTP; imported only where `[telemetry] endpoint` is set.

Nothing of the environment is in them: no host, no process, no OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ddib_fed.errors import DdibError
from ddib_fed.extras import extra
from ddib_fed.telemetry.context import TraceContext
from ddib_fed.telemetry.settings import TelemetrySettings
from ddib_fed.telemetry.tracing import Kind, Remembered, Span, Tracing, Value
from ddib_fed.version import __version__

with extra("otel", "opentelemetry-exporter-otlp-proto-http", "[telemetry] needs OpenTelemetry"):
    import requests
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

EXPORT_TIMEOUT_S: Final = 3.0
"""Of one try to send, and at most of the end of a command while the collector does not answer."""
_SCOPE: Final = "ddib_fed"
_KINDS: Final[Mapping[Kind, trace.SpanKind]] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
}
_PREFIX: Final = "ddib."


def resource(institution: str, what: str) -> Resource:
    """Whose spans and metrics they are."""
    return Resource(
        {
            "service.name": f"ddib-fed-{what}",
            "service.namespace": institution,
            "service.version": __version__,
        }
    )


def session() -> requests.Session:
    """A session that uses neither proxies nor logins of the environment."""
    made = requests.Session()
    made.trust_env = False
    return made


class _OtelSpan(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        found = span.get_span_context()
        self.context = TraceContext(found.trace_id, found.span_id, found.trace_flags.sampled)

    def set(self, values: Mapping[str, Value]) -> None:
        self._span.set_attributes(_named(values))


class OtelTracing(Tracing):
    """Tracing that is on."""

    on = True

    def __init__(
        self,
        exporter: SpanExporter,
        of: Resource,
        *,
        institution: str,
        sample: float = 1.0,
        peers: Iterable[str] = (),
        at_once: bool = False,
    ) -> None:
        self._shared = frozenset({institution, *peers})
        self._provider = TracerProvider(
            # By the trace's number alone: what a peer says of sampling decides nothing here.
            sampler=TraceIdRatioBased(sample),
            resource=of,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attributes=32, max_events=0, max_links=0, max_attribute_length=256),
        )
        processor = SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SCOPE, __version__)
        self._places = Remembered()

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: TraceContext | None = None,
        values: Mapping[str, Value] | None = None,
    ) -> Iterator[Span]:
        span = self._tracer.start_span(
            name, _parent(parent), kind=_KINDS[kind], attributes=_named(values or {}), record_exception=False
        )
        try:
            yield _OtelSpan(span)
        except GeneratorExit:  # whoever takes from a stream has left it
            raise
        except BaseException as error:
            reason = error.reason if isinstance(error, DdibError) else type(error).__name__
            span.set_status(trace.Status(trace.StatusCode.ERROR, reason))
            raise
        finally:
            span.end()

    def record(
        self,
        name: str,
        seconds: float,
        *,
        parent: TraceContext | None,
        values: Mapping[str, Value] | None = None,
    ) -> None:
        end = time.time_ns()
        start = end - int(max(0.0, seconds) * 1e9)
        span = self._tracer.start_span(
            name, _parent(parent), attributes=_named(values or {}), start_time=start, record_exception=False
        )
        span.end(end)

    def shares_with(self, institution: str) -> bool:
        return institution in self._shared

    def remember(self, key: str, context: TraceContext | None) -> None:
        if context is not None:
            self._places.put(key, context)

    def recall(self, key: str) -> TraceContext | None:
        return self._places.get(key)

    def close(self) -> None:
        self._provider.shutdown()


def _named(values: Mapping[str, Value]) -> dict[str, Value]:
    return {_PREFIX + name: value for name, value in values.items()}


def _parent(parent: TraceContext | None) -> trace.Context:
    if parent is None:
        return trace.Context()
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else trace.TraceFlags.DEFAULT)
    remote = trace.SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), trace.Context())


def otlp_tracing(
    settings: TelemetrySettings, *, institution: str, what: str, peers: Iterable[str] = ()
) -> OtelTracing:
    """Tracing towards the collector of the settings, whose endpoint must be set."""
    exporter = OTLPSpanExporter(f"{settings.endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S, session=session())
    return OtelTracing(
        exporter,
        resource(institution, what),
        institution=institution,
        sample=settings.sample,
        peers=peers,
    )
