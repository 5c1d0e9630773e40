"""Shorter pauses before a node tries again, for `tests.e2e.processes.PLANT`: a test waits for the try alone."""

PLANTED = "tests.e2e.impatience:plant"
LONGEST_S = 1.0


def plant() -> None:
    """In a node's process, before it starts."""
    from ddib_fed.node import certificates
    from ddib_fed.protocol import calls
    from source_node import runner

    runner.LONGEST_PAUSE_S = LONGEST_S
    calls.MAX_RETRY_AFTER_MS = int(1_000 * LONGEST_S)  # type: ignore[misc]
    certificates.CHECK_INTERVAL_S = LONGEST_S  # type: ignore[misc]
