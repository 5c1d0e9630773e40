"""A node: one process, one model, one port, one or more roles."""

import ddib_fed.protocol  # noqa: F401 - TLS options must be set before grpc is imported
