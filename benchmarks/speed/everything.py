"""`make bench`: every benchmark of speed, one after another, and the tables of the pages; about an hour.

    python -m benchmarks.speed.everything

Ends with 1 when one fails or misses a bound; the others run all the same.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import smoke, tables
from benchmarks.command import ROOT


def main() -> int:
    """Run them all; 1 when one failed or missed a bound."""
    failed = []
    for name in smoke.names():
        if name.startswith("benchmarks.speed."):
            print(f"== {name}", flush=True)
            if subprocess.run([sys.executable, "-m", name], check=False, cwd=ROOT).returncode:
                failed.append(name)
    tables.main()
    if failed:
        print(f"missed a bound, or failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
