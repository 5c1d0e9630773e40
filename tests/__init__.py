"""Tests; whichever runs first, the cipher suites are set before gRPC is imported, as in the programs themselves.

One thread for torch, in the tests and in what they start: a second one beside a busy core makes OpenMP crawl.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ddib_fed.rpc  # noqa: F401
