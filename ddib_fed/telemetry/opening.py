"""Opens the telemetry of a node or client; nothing of OpenTelemetry is imported while it is off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddib_fed.telemetry.settings import NodeTelemetry, TelemetrySettings
from ddib_fed.telemetry.tracing import OFF, Tracing

if TYPE_CHECKING:
    from ddib_fed.telemetry.otel_metrics import MetricsSender, Registry


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a node sends to its institution's collector; by default nothing."""

    tracing: Tracing = OFF
    metrics: MetricsSender | None = None

    def close(self) -> None:
        """Send what is left."""
        if self.metrics is not None:
            self.metrics.close()
        self.tracing.close()


def client_tracing(settings: TelemetrySettings, institution: str) -> Tracing:
    """The tracing of a client."""
    if settings.endpoint is None:
        return OFF
    from ddib_fed.telemetry.otel import otlp_tracing

    return otlp_tracing(settings, institution=institution, what="client")


def node_telemetry(
    settings: NodeTelemetry, registry: Registry, *, institution: str, roles: tuple[str, ...]
) -> Telemetry:
    """The telemetry of a node."""
    if settings.endpoint is None:
        return Telemetry()
    from ddib_fed.telemetry.otel import otlp_tracing, resource
    from ddib_fed.telemetry.otel_metrics import otlp_metrics

    what = "+".join(roles)
    tracing = otlp_tracing(settings, institution=institution, what=what, peers=settings.peers)
    if not settings.metrics_every_s:
        return Telemetry(tracing)
    of = resource(institution, what)
    return Telemetry(tracing, otlp_metrics(settings.endpoint, registry, of, settings.metrics_every_s))


def check_telemetry(settings: TelemetrySettings) -> str:
    """What there is, for `check`."""
    if settings.endpoint is None:
        return "off"
    import ddib_fed.telemetry.otel  # noqa: F401 - raises where the extra is missing

    return f"to {settings.endpoint}"
