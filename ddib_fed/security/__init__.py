"""Identities, certificates, TLS, peers, pairing and the audit log."""

import ddib_fed.protocol  # noqa: F401 - TLS options must be set before grpc is imported
