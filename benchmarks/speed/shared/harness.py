"""What every benchmark of speed shares: interleaved runs, medians and spread, bounds, and the JSON of docs/benchmarks.

    def measure(form: Form) -> Report:
        report = Report("what was run, on what data")
        times = interleaved({"one process": alone, "two nodes": federated}, repeats=form.pick(2, 5))
        report.add_times(times)
        report.bound("two nodes / one process", ratio(times, "two nodes", "one process"), at_most=1.10)
        return report

    if __name__ == "__main__":
        raise SystemExit(main("federated", measure))

`python -m benchmarks.speed.NAME` measures the long form and writes docs/benchmarks/speed/NAME.json; `--short` measures
what takes a minute or two and writes NAME.short.json. The exit status is 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[3]
OUT = ROOT / "docs" / "benchmarks" / "speed"
T = TypeVar("T")
PACKAGES = ("torch", "numpy", "grpcio", "protobuf", "ray")
Times = dict[str, list[float]]
SKIPPED = 77
"""The exit status of a benchmark that cannot run here, as automake has it."""


@dataclass(frozen=True, slots=True)
class Form:
    """Which form is run."""

    short: bool

    def pick(self, short: T, long: T) -> T:
        return short if self.short else long


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured thing: median, smallest and largest of `runs` values."""

    what: str
    unit: str
    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure and what it must be; `held` says whether it was."""

    what: str
    value: float
    at_most: float | None
    at_least: float | None
    runs: int
    low: float
    high: float

    @property
    def held(self) -> bool:
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


@dataclass(slots=True)
class Report:
    """What one benchmark found."""

    what: str
    figures: list[Figure] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, values: Sequence[float], unit: str) -> None:
        self.figures.append(
            Figure(what, unit, statistics.median(values), min(values), max(values), len(values))
        )

    def add_times(self, times: Times, unit: str = "s") -> None:
        for what, values in times.items():
            self.add(what, values, unit)

    def bound(
        self,
        what: str,
        values: Sequence[float],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        self.bounds.append(
            Bound(what, statistics.median(values), at_most, at_least, len(values), min(values), max(values))
        )

    def note(self, text: str) -> None:
        self.notes.append(text)


def interleaved(candidates: Mapping[str, Callable[[], float | None]], repeats: int) -> Times:
    """Run all candidates by turns, `repeats` times, in alternating order; one uncounted round first is the caller's."""
    times: Times = {name: [] for name in candidates}
    for turn in range(repeats):
        names = list(candidates)
        for name in names if turn % 2 == 0 else reversed(names):
            started = time.perf_counter()
            own = candidates[name]()
            wall = time.perf_counter() - started
            times[name].append(wall if own is None else own)
            sys.stderr.write(f"{name}: {times[name][-1]:.4g}\n")
    return times


def ratio(times: Times, candidate: str, baseline: str) -> list[float]:
    return [a / b for a, b in zip(times[candidate], times[baseline], strict=True)]


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": found,
        "load before": round(os.getloadavg()[0], 2),
    }


def main(name: str, measure: Callable[[Form], Report], arguments: Sequence[str] | None = None) -> int:
    """The command of one benchmark; its exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.speed.{name}", description=measure.__doc__)
    parser.add_argument("--short", action="store_true", help="the form that `make bench` runs")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON")
    given = parser.parse_args(arguments)
    form = Form(given.short)
    described, started = machine(), time.perf_counter()
    report = measure(form)
    record = {
        "command": f"python -m benchmarks.speed.{name}" + (" --short" if form.short else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": described,
        **asdict(report),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / (f"{name}.short.json" if form.short else f"{name}.json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    for figure in report.figures:
        spread = f"{figure.low:.4g} to {figure.high:.4g}, {figure.runs} runs"
        print(f"{figure.what}: {figure.median:.4g} {figure.unit} ({spread})")
    for bound in report.bounds:
        print(
            f"{bound.what}: {bound.value:.4g}, {limit_of(asdict(bound))}: {'held' if bound.held else 'MISSED'}"
        )
    for note in report.notes:
        print(note)
    return 0 if all(bound.held for bound in report.bounds) else 1


def limit_of(bound: Mapping[str, Any]) -> str:
    limits = [("at most", bound["at_most"]), ("at least", bound["at_least"])]
    return ", ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
