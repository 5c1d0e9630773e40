"""`executor = "processes"`: two worker processes beside one and beside none, and one that is killed.

    python -m benchmarks.speed.workers

Files of 2,048 points through a source node, moons, 48 evaluations, one thread a worker; the target computes little.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.pools import measure_pools


def measure(run: Run) -> Rows:
    """Encode points with worker processes."""
    with tempfile.TemporaryDirectory(prefix="ddib-workers-") as folder:
        yield from measure_pools(run, Path(folder), {"executor": "processes"}, {})


if __name__ == "__main__":
    sys.exit(command(measure, "speed/workers"))
