"""The target node: latent to picture, for admitted peers."""

import ddib_fed.node  # noqa: F401 - it sets the cipher suites, which must happen before grpc is imported
