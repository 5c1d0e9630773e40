"""Runs the tests that hold promises, in their long form, and writes what came of it to docs/trust-report.md.

    python -m benchmarks.trust.report trust            `make trust`: everything but the chaos
    python -m benchmarks.trust.report chaos            `make chaos`: tests/chaos
    python -m benchmarks.trust.report trust --short    the same tests as `make test` runs them
    python -m benchmarks.trust.report trust -- -k tap  with further arguments for pytest; writes nothing

A test names its promise by `@pytest.mark.promise("latents")` (`benchmarks.trust.promises`); the fixtures `amount` and
`evidence` of tests/conftest.py give it the numbers of the form and take what it found. Ends with pytest's exit code.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.pages import between, markdown
from benchmarks.trust.promises import PROMISES
from ddib_fed.files import write_file

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "trust-report.md"
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


def section(recorder: Recorder, *, form: str, seconds: float) -> str:
    """What the page says of one run: the promises, then each test below its promise."""
    columns = ("promise", "cases", "failed", "tests that did not run")
    totals = tuple(
        (
            PROMISES[name],
            *(sum(getattr(row, what) for row in rows.values()) for what in ("cases", "failed", "skipped")),
        )
        for name in PROMISES
        if (rows := recorder.rows.get(name))
    )
    parts = [about(form, seconds), markdown(columns, totals)]
    for name, sentence in PROMISES.items():
        if rows := recorder.rows.get(name):
            tests = tuple(
                (
                    row.fact.replace("|", "\\|"),
                    f"`{test}`",
                    row.cases,
                    row.failed,
                    "; ".join(dict.fromkeys(row.figures)),
                )
                for test, row in rows.items()
            )
            parts += [
                f"### {sentence}",
                markdown(("what holds", "test", "cases", "failed", "measured"), tests),
            ]
    return "\n\n".join(parts)


def about(form: str, seconds: float) -> str:
    """Of which commit, when and where a run was."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = [line for line in _git("status", "--porcelain").splitlines() if not line.endswith(PAGE.name)]
    tree = "a clean checkout" if not changed else f"a checkout with {len(changed)} changed files"
    return (
        f"The {form} form, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit} in {tree}, "
        f"Python {platform.python_version()}, {seconds / 60:.0f} minutes."
    )


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(which: str, text: str) -> None:
    page = between(PAGE.read_text(encoding="utf-8"), which, f"make {which}", text)
    write_file(PAGE, page.encode())


def main() -> int:
    """Run and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    text = section(recorder, form="short" if given.short else "long", seconds=time.monotonic() - started)
    if not further:
        write(given.which, text)
    sys.stdout.write(text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
