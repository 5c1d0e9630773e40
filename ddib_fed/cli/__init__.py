"""The `ddib` command: thin click commands over the API."""

import ddib_fed.protocol  # noqa: F401 - TLS options must be set before grpc is imported
