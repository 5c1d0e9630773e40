"""The source node: picture to latent, for its own clients."""

import ddib_fed.protocol  # noqa: F401 - TLS options must be set before grpc is imported
