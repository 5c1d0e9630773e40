"""The Python API: `ddib_fed.load`, `ddib_fed.translate` and their results."""
