"""The source node: picture to latent, for its own clients."""

import ddib_fed.node  # noqa: F401 - it sets the cipher suites, which must happen before grpc is imported
