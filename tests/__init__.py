"""Tests; whichever runs first, the cipher suites are set before gRPC is imported, as in the programs themselves."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ddib_fed.protocol  # noqa: F401
