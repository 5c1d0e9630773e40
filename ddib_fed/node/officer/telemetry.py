"""What of a node's telemetry leaves, for the officer's page: to the institution's own collector, and to peers."""

from __future__ import annotations

from ddib_fed.node.config import NodeConfig


def telemetry_lines(config: NodeConfig) -> list[str]:
    """What is in it, and to whom of the peers a trace id goes."""
    telemetry = config.telemetry
    if telemetry.endpoint is None:
        return ["Telemetry is off: no traces are made, and no trace id crosses."]
    lines = [
        (
            f"Telemetry: traces go to {telemetry.endpoint}: times, counts, bytes, numbers of jobs, reasons of errors "
            "and names of institutions; no file names, no persons, nothing of a sample."
        )
    ]
    if telemetry.peers:
        lines.append(
            f"Trace ids are shared with {', '.join(telemetry.peers)}, where it lists this institution too: each Decode "
            "call then carries `traceparent`, 55 characters of which 24 bytes are random numbers, and the target "
            "answers `ddib-trace` when a contract is agreed on. Nothing else of a trace crosses."
        )
    return lines


def telemetry_ports(config: NodeConfig) -> list[tuple[str, str, str, str]]:
    """The connection to the collector; none while telemetry is off."""
    endpoint = config.telemetry.endpoint
    if endpoint is None:
        return []
    protection = "TLS" if endpoint.startswith("https:") else "plain HTTP on loopback"
    return [("out", endpoint, protection, "traces, to the own collector")]
