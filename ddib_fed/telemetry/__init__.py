"""Traces and metrics for an institution's own OpenTelemetry collector: off by default, and nothing is imported then."""
