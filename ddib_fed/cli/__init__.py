"""The `ddib` command: thin click commands over the API."""

import ddib_fed.rpc  # noqa: F401 - TLS options must be set before grpc is imported
