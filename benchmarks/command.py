"""The command of a benchmark: its long form and its smoke, and the record of what it measured.

    def measure(run: Run) -> Rows:
        pictures = test_pictures[: run.pick(smoke=4, long=85)]
        ...
        yield {"way": "the map alone", "psnr": interval}

    if __name__ == "__main__":
        sys.exit(command(measure, "pictures/large"))

`python -m benchmarks.pictures.large` measures and writes docs/benchmarks/pictures/large.json. With `--smoke` it does
the same on as little as shows that it runs (at most 5 s) and writes nothing; `make check` runs the smoke of each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "benchmarks"
PRODUCT = ("ddib_fed", "source_node", "target_node", "models", "benchmarks")
PACKAGES = ("torch", "numpy", "grpcio", "protobuf")
T = TypeVar("T")
Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """What a benchmark is asked for: its smoke or its long form, and its own options."""

    smoke: bool
    options: argparse.Namespace

    def pick(self, *, smoke: T, long: T) -> T:
        return smoke if self.smoke else long


def command(
    measure: Callable[[Run], Rows],
    name: str,
    *,
    arguments: Callable[[argparse.ArgumentParser], object] | None = None,
    module: str | None = None,
) -> int:
    """Run a benchmark by the options of this process, and write its record; return the exit status.

    `measure` yields rows, which are printed as they come and written as `rows` of docs/benchmarks/NAME.json; without
    any nothing is written. A row with `held: False` makes the status 1.
    """
    main = sys.modules["__main__"]
    module = module or (main.__spec__.name if main.__spec__ else name.replace("/", "."))
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=main.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="only show that it runs; at most 5 s; no file")
    if arguments:
        arguments(parser)
    options = parser.parse_args()
    described, started = origin(module), time.perf_counter()
    rows = []
    for row in measure(Run(options.smoke, options)):
        print(json.dumps(row), flush=True)
        rows.append(dict(row))
    if rows and not options.smoke:
        seconds = round(time.perf_counter() - started, 1)
        path = OUT / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**described, "seconds": seconds, "rows": rows}, indent=1) + "\n")
    return int(any(row.get("held") is False for row in rows))


def origin(module: str) -> dict[str, Any]:
    """Return where and of what a record comes: command, commit, date, machine and packages."""
    return {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "packages": dict(filter(None, map(_package, PACKAGES))),
        },
    }


def commit() -> str:
    """Return the commit that is checked out, with a + if the code differs from it; "" outside a repository."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", *PRODUCT], capture_output=True, check=False
    )
    return found.stdout.strip() + "+" * bool(changed.stdout.strip())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _package(name: str) -> tuple[str, str] | None:
    try:
        return name, version(name)
    except PackageNotFoundError:
        return None
