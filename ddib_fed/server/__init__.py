"""A gRPC server with mutual TLS: authentication, limits, logs, probes."""

import ddib_fed.rpc  # noqa: F401 - TLS options must be set before grpc is imported
