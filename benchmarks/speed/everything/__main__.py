"""`make bench`: the short form of every benchmark of speed, one after another, and docs/benchmarks.md.

python -m benchmarks.speed.everything

A benchmark that needs an extra which is not installed says so and is left out. The exit status is 1 when a bound is
missed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.speed.everything.page import write_page
from benchmarks.speed.shared.harness import ROOT, SKIPPED

HERE = Path(__file__).resolve()
FOLDER = ROOT / "benchmarks" / "speed"


def names() -> list[str]:
    """The benchmarks: every module or package of their folder with a command of its own that measures."""
    return sorted(
        (path.parent if path.stem == "__main__" else path).stem
        for path in (*FOLDER.glob("*.py"), *FOLDER.glob("*/__main__.py"))
        if path.resolve() != HERE and "raise SystemExit(main(" in path.read_text()
    )


def run() -> int:
    """Run them all; 1 when one failed or missed a bound."""
    failed = []
    for name in names():
        print(f"== {name}", flush=True)
        status = subprocess.run(
            [sys.executable, "-m", f"benchmarks.speed.{name}", "--short"], check=False, cwd=ROOT
        ).returncode
        if status not in {0, SKIPPED}:
            failed.append(name)
    write_page()
    if failed:
        print(f"missed a bound, or failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(run())
