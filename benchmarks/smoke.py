"""Run the smoke of every benchmark, two at once: `python -m benchmarks.smoke [NAME ...]`; 1 if one fails."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 900  # a hang; a smoke takes 5 s on an idle core, and its nodes as much again


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
        if "\n    sys.exit(command" in path.read_text(encoding="utf-8")
    ]


def smoke(name: str) -> bool:
    """Run one; return whether it ended with 0."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", name, "--smoke"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
        )
        watch = threading.Timer(LIMIT_S, process.kill)
        watch.start()
        _, status, used = os.wait4(process.pid, 0)
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read().decode(errors="replace")[-6000:]
    seconds, cpu = time.perf_counter() - started, used.ru_utime + used.ru_stime
    end = f"  FAILED\n{output}" * bool(process.returncode)
    print(f"{name:44}{seconds:6.1f} s{cpu:6.1f} s of CPU{end}", flush=True)
    return not process.returncode


if __name__ == "__main__":
    sys.exit(main())
