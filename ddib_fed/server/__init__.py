"""A gRPC server with mutual TLS: authentication, limits, logs, probes."""
