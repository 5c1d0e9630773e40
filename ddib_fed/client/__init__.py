"""The client of a source node; imports no torch."""

import ddib_fed.rpc  # noqa: F401 - TLS options must be set before grpc is imported
