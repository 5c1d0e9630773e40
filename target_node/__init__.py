"""The target node: latent to picture, for admitted peers."""

import ddib_fed.protocol  # noqa: F401 - TLS options must be set before grpc is imported
