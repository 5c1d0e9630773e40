"""The client of a source node; imports no torch."""

import ddib_fed.protocol  # noqa: F401 - TLS options must be set before grpc is imported
