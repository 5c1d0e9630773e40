"""Runs the tests that hold promises, in their long form, and writes what came of it to docs/benchmarks/trust.

    python -m benchmarks.trust.report trust            `make trust`: everything but the chaos
    python -m benchmarks.trust.report chaos            `make chaos`: tests/chaos
    python -m benchmarks.trust.report trust --short    the same tests as `make test` runs them
    python -m benchmarks.trust.report trust -- -k tap  with further arguments for pytest; writes nothing

A test names its promise by `@pytest.mark.promise("latents")` (`benchmarks.trust.promises`); the fixtures `amount` and
`evidence` of tests/conftest.py give it the numbers of the form and take what it found. Ends with pytest's exit code.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks import options
from ddib_fed.files import write_file

ROOT: Final = Path(__file__).resolve().parents[2]
OUT: Final = ROOT / "docs" / "benchmarks" / "trust"
CHAOS: Final = "tests/chaos"
SELECTED: Final = {"trust": ("tests", f"--ignore={CHAOS}"), "chaos": (CHAOS,)}


@dataclass
class Row:
    """What one test function found, over all its parameters."""

    fact: str
    cases: int = 0
    failed: int = 0
    skipped: int = 0
    figures: list[str] = field(default_factory=list)


class Recorder:
    """A pytest plugin that adds up the tests of each promise."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the call of a test, or the set-up that kept it from being called."""
        said: dict[str, Any] = {}
        figures = []
        for name, value in report.user_properties:
            if name == "figure":
                figures.append(str(value))
            else:
                said[name] = value
        if "promise" not in said or (report.when != "call" and report.passed):
            return
        test = report.nodeid.partition("[")[0]
        row = self.rows.setdefault(str(said["promise"]), {}).setdefault(test, Row(str(said["fact"])))
        if report.skipped:
            row.skipped += 1
            return
        row.cases += int(said.get("cases", 1))
        row.failed += max(int(said.get("failed", 0)), int(report.failed))
        row.figures += figures


def about(form: str, seconds: float) -> dict[str, Any]:
    """Of which commit, when and where a run was."""
    return {
        "form": form,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(_git("status", "--porcelain").splitlines()),
        "python": platform.python_version(),
        "minutes": round(seconds / 60),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(which: str, found: dict[str, Any]) -> None:
    """The JSON of a run, and the table of SECURITY.md."""
    write_file(OUT / f"{which}.json", (json.dumps(found, indent=1) + "\n").encode())
    subprocess.run([sys.executable, "-m", "benchmarks.tables"], cwd=ROOT, check=True)


def main() -> int:
    """Run and write."""
    parser = options(__doc__)
    parser.add_argument("which", choices=[*SELECTED])
    parser.add_argument("--short", action="store_true", help="the numbers of `make test`")
    words = sys.argv[1:]
    own, further = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    given = parser.parse_args(own)
    recorder, started = Recorder(), time.monotonic()
    form = [] if given.short else ["--long"]
    code = int(
        pytest.main([*SELECTED[given.which], "-q", "-m", "promise", *form, *further], plugins=[recorder])
    )
    tests = [
        {"promise": name, "test": test, **asdict(row)} | {"figures": list(dict.fromkeys(row.figures))}
        for name, rows in recorder.rows.items()
        for test, row in rows.items()
    ]
    found = about("short" if given.short else "long", time.monotonic() - started)
    if not further:
        write(given.which, {**found, "tests": tests})
    for test in tests:
        sys.stdout.write(
            f"{test['test']}: {test['cases']} cases, {test['failed']} failed, {test['skipped']} skipped\n"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
