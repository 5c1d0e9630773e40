"""The `ddib` command: thin click commands over the API."""
