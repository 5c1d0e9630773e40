"""Fifty kill -9 of either node, with the shipped models, at random moments during jobs: every job is finished once.

    python -m benchmarks.kills

It is the long form of one test of tests/chaos/test_kills.py; `make chaos` runs it with the others. Ends with 1 when a
job was lost or done twice, a database or an audit chain is broken, or a node did not come back in time.
"""

from __future__ import annotations

import sys

import pytest

TEST = "tests/chaos/test_kills.py::test_random_kills_with_the_real_engine"


def main() -> int:
    return int(pytest.main([TEST, "--long", "-q"]))


if __name__ == "__main__":
    sys.exit(main())
