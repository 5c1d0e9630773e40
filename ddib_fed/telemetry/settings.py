"""The table `[telemetry]` of node.toml and client.toml."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ddib_fed.names import is_institution

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class TelemetrySettings(BaseModel):
    """Where traces and metrics go; nowhere by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0

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
    """The same of a node."""

    metrics_every_s: Annotated[float, Field(ge=0, le=3600)] = 60.0
    peers: tuple[str, ...] = ()

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for institution in value:
            if not is_institution(institution):
                raise ValueError(f"{institution!a} is no institution, e.g. south.example")
        return value
