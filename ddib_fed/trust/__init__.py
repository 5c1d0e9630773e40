"""Identities, certificates, admitted peers, TLS and the audit log."""

import ddib_fed.rpc  # noqa: F401 - TLS options must be set before grpc is imported
