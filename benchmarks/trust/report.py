"""Runs the tests that hold promises, in their long form, and records what they found.

    python -m benchmarks.trust.report            `make trust`: everything but the chaos, 15 minutes
    python -m benchmarks.trust.report chaos      `make chaos`: tests/chaos, an hour

A test names its promise by `@pytest.mark.promise("latents")` (`benchmarks.trust.promises`); the fixtures `amount` and
`evidence` of tests/conftest.py give it the numbers of the form and take what it found.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import pytest

from benchmarks.command import Rows, Run, command

SELECTED: Final = {"trust": ("tests", "--ignore=tests/chaos"), "chaos": ("tests/chaos",)}
SMOKE: Final = ("tests/protocol/test_surface.py",)


@dataclass
class Row:
    """What one test function found, over all its parameters."""

    promise: str
    test: str
    fact: str
    cases: int = 0
    failed: int = 0
    skipped: int = 0
    figures: list[str] = field(default_factory=list)


class Recorder:
    """A pytest plugin that adds up the tests of each promise."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the call of a test, or the set-up that kept it from being called."""
        properties: dict[str, Any] = {}
        figures = []
        for name, value in report.user_properties:
            if name == "figure":
                figures.append(str(value))
            else:
                properties[name] = value
        if "promise" not in properties or (report.when != "call" and report.passed):
            return
        test = report.nodeid.partition("[")[0]
        row = self.rows.setdefault(test, Row(str(properties["promise"]), test, str(properties["fact"])))
        if report.skipped:
            row.skipped += 1
            return
        row.cases += int(properties.get("cases", 1))
        row.failed += max(int(properties.get("failed", 0)), int(report.failed))
        row.figures += [figure for figure in figures if figure not in row.figures]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the argument of this benchmark."""
    parser.add_argument("which", nargs="?", choices=[*SELECTED], default="trust")


def measure(run: Run) -> Rows:
    """Run the tests."""
    recorder = Recorder()
    words = run.pick(smoke=SMOKE, long=(*SELECTED[run.options.which], "--long"))
    code = int(pytest.main([*words, "-q", "-m", "promise"], plugins=[recorder]))
    if code > 1:
        raise SystemExit(f"pytest ended with {code}")
    for row in recorder.rows.values():
        yield {**asdict(row), "held": row.failed == 0}


if __name__ == "__main__":
    name = "chaos" if "chaos" in sys.argv else "trust"
    sys.exit(command(measure, f"trust/{name}", arguments=arguments))
