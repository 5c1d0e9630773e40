"""Tests; whichever runs first, the cipher suites are set before gRPC is imported, as in the programs themselves."""

import ddib_fed.node  # noqa: F401
