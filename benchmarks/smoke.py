"""Run the smoke of every benchmark, two at once: `python -m benchmarks.smoke [NAME ...]`; 1 if one fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 300  # a hang; a smoke takes 5 s on an idle machine


def main() -> int:
    """Run them and print the seconds of each, and the output of those that fail."""
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(smoke, sys.argv[1:] or names()))
    return int(not all(results))


def names() -> list[str]:
    """Return the modules of this package that are benchmarks: those with a command of `benchmarks.command`."""
    paths = sorted((ROOT / "benchmarks").rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in paths
        if "sys.exit(command(" in path.read_text(encoding="utf-8")
    ]


def smoke(name: str) -> bool:
    """Run one; return whether it ended with 0."""
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", name, "--smoke"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    bad = process.returncode != 0
    output = f"\n{process.stdout[-2000:]}{process.stderr[-4000:]}" if bad else ""
    print(f"{name:44}{time.perf_counter() - started:6.1f} s{'  FAILED' * bad}{output}", flush=True)
    return not bad


if __name__ == "__main__":
    sys.exit(main())
