"""Counters for /metrics; names follow Prometheus' conventions, labels never hold content."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One registry per node, so that two nodes in one process do not share counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ddib_requests", "Calls by method and status.", ["method", "status"], registry=self.registry
        )
        self.items = Counter(
            "ddib_items", "Items by stage and outcome.", ["stage", "outcome"], registry=self.registry
        )
        self.samples = Counter("ddib_samples", "Samples by stage.", ["stage"], registry=self.registry)
        self.latent_bytes = Counter(
            "ddib_latent_bytes", "Bytes of latents by direction.", ["direction"], registry=self.registry
        )
        self.seconds = Histogram(
            "ddib_stage_seconds",
            "Seconds an item spends in a stage.",
            ["stage"],
            registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
        )
        self.streams = Gauge("ddib_active_streams", "Streams that are open now.", registry=self.registry)
        self.certificate_expires = Gauge(
            "ddib_certificate_expires_timestamp_seconds",
            "Unix time at which the node's certificate ends; 0 while it cannot be read.",
            registry=self.registry,
        )
        self.root_expires = Gauge(
            "ddib_root_expires_timestamp_seconds",
            "Unix time at which the root of the node's certificate ends; 0 while it cannot be read.",
            registry=self.registry,
        )
        self.ready = Gauge("ddib_ready", "1 when the model is loaded and warm.", registry=self.registry)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
