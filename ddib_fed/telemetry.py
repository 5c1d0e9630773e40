"""Spans of the steps of a translation, for the institution's own OpenTelemetry collector; off by default.

Parents are given explicitly: one translation passes through many threads and two institutions. Values of spans are
numbers, names of institutions, ids of jobs and reasons of errors: never a file's name, an error's text, an identity or
anything of a sample. Nothing of the environment is in them: no host, no process, no OTEL_RESOURCE_ATTRIBUTES.

Between institutions a trace id crosses only where both list each other in `[telemetry] peers`: a target that lists the
caller ends NegotiateContract with `ddib-trace`, and a source that lists the target then sends `traceparent` with
Decode. A client sends it to the node of its own institution. What arrives is untrusted: one value of the one form of
W3C Trace Context, level 1, or nothing.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import AfterValidator, Field, field_validator

from ddib_fed.errors import DdibError, extra
from ddib_fed.names import __version__, check_institution
from ddib_fed.record import Frozen

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

Value = str | int | float
TRACE_KEY: Final = "traceparent"
TAKES_KEY: Final = "ddib-trace"
TRACEPARENT_CHARACTERS: Final = 55
MOST_REMEMBERED: Final = 4_096
"""The oldest jobs are forgotten, and their later spans begin traces of their own."""
MOST_ITEMS: Final = 64
EXPORT_TIMEOUT_S: Final = 3.0  # a command ends at most so much later while the collector does not answer
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class TelemetrySettings(Frozen):
    """The table `[telemetry]` of client.toml."""

    endpoint: str | None = Field(
        None,
        description="OTLP over HTTP; https:// beyond loopback. Without it nothing is sent",
        examples=["http://127.0.0.1:4318"],
    )

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{value!a} is not the URL of a collector, e.g. http://127.0.0.1:4318")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a login for the collector stands in OTEL_EXPORTER_OTLP_HEADERS, not in the URL")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"{value!a} is unencrypted: http:// is for loopback only, use https://")
        return value.rstrip("/")


class NodeTelemetry(TelemetrySettings):
    """To the institution's own OpenTelemetry collector; needs the packages of the extra otel."""

    peers: tuple[Annotated[str, AfterValidator(check_institution)], ...] = Field(
        (),
        description="trace ids go to and come from these, where they list this institution too",
        examples=[["south.example"]],
    )


class Tracing:
    """The spans of one party; without a tracer nothing is recorded, kept or sent."""

    def __init__(
        self,
        tracer: Tracer | None = None,
        shared: Iterable[str] = (),
        close: Callable[[], object] = lambda: None,
    ) -> None:
        # Never the global tracer: the environment could set one.
        self._tracer = tracer or NoOpTracer()
        self._shared = frozenset(shared)
        self.close = close
        self._jobs: OrderedDict[str, Span] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def span(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, parent: Span | None = None, **values: Value
    ) -> Iterator[Span]:
        span = self._tracer.start_span(name, _under(parent), kind=kind, attributes=named(**values))
        try:
            yield span
        except GeneratorExit:  # whoever takes from a stream has left it
            raise
        except BaseException as error:
            reason = error.reason if isinstance(error, DdibError) else type(error).__name__
            span.set_status(Status(StatusCode.ERROR, reason))
            raise
        finally:
            span.end()

    def record(self, name: str, seconds: float, *, parent: Span | None, **values: Value) -> None:
        """Record a step that has just ended and took so long."""
        end = time.time_ns()
        start = end - int(max(0.0, seconds) * 1e9)
        self._tracer.start_span(name, _under(parent), attributes=named(**values), start_time=start).end(end)

    def shares_with(self, institution: str) -> bool:
        return institution in self._shared

    def remember(self, job: str, span: Span | None) -> None:
        """Keep the place of a job in its trace."""
        if span is None or not span.get_span_context().is_valid:
            return
        with self._lock:
            self._jobs[job] = span
            while len(self._jobs) > MOST_REMEMBERED:
                self._jobs.popitem(last=False)

    def recall(self, job: str) -> Span | None:
        with self._lock:
            return self._jobs.get(job)


OFF: Final = Tracing()


def named(**values: Value) -> dict[str, Value]:
    return {f"ddib.{name}": value for name, value in values.items()}


def _under(parent: Span | None) -> Context:
    return Context() if parent is None else set_span_in_context(parent, Context())


def parse_traceparent(text: str) -> Span | None:
    """Return the span in a text of another side; None for anything but the one form."""
    if len(text) != TRACEPARENT_CHARACTERS or not text.startswith("00-"):
        return None
    span: Span = get_current_span(_PROPAGATOR.extract({TRACE_KEY: text}, Context()))
    return span if span.get_span_context().is_valid else None


def trace_entries(span: Span | None) -> dict[str, Any]:
    """Return arguments of a call by which it belongs to a span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, _under(span))
    return {"metadata": ((TRACE_KEY, carrier[TRACE_KEY]),)} if carrier else {}


def trace_of(metadata: Iterable[Any] | None, tracing: Tracing, institution: str) -> Span | None:
    """Return the span to which a call of an institution belongs, by its metadata."""
    if not tracing.shares_with(institution):
        return None
    parents = [value for key, value in metadata or () if key == TRACE_KEY]
    return parse_traceparent(parents[0]) if len(parents) == 1 and isinstance(parents[0], str) else None


def takes_entries(tracing: Tracing, institution: str) -> tuple[tuple[str, str], ...]:
    return ((TAKES_KEY, "1"),) if tracing.shares_with(institution) else ()


def is_taken(trailing: Iterable[Any] | None) -> bool:
    return any(key == TAKES_KEY and value == "1" for key, value in trailing or ())


def open_tracing(
    settings: TelemetrySettings, *, institution: str, what: str, peers: Iterable[str] = ()
) -> Tracing:
    """Return the tracing of a client or node; OpenTelemetry's SDK is imported only with an endpoint."""
    if settings.endpoint is None:
        return OFF
    with extra("otel", "opentelemetry-exporter-otlp-proto-http", "[telemetry] needs OpenTelemetry"):
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    session = requests.Session()
    session.trust_env = False  # neither proxies nor logins of the environment
    exporter = OTLPSpanExporter(f"{settings.endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S, session=session)
    return tracing_to(BatchSpanProcessor(exporter), institution=institution, what=what, peers=peers)


def tracing_to(
    processor: SpanProcessor, *, institution: str, what: str, peers: Iterable[str] = ()
) -> Tracing:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    named = {
        "service.name": f"ddib-fed-{what}",
        "service.namespace": institution,
        "service.version": __version__,
    }
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # what a peer says of sampling decides nothing here
        resource=Resource(named),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_attributes=32, max_events=0, max_links=0, max_attribute_length=256),
    )
    provider.add_span_processor(processor)
    return Tracing(provider.get_tracer("ddib_fed", __version__), {institution, *peers}, provider.shutdown)
