"""The demo's report.json, and tables of its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ddib_fed.cli.output import number, print_table
from ddib_fed.files import write_json


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure with its upper or lower bound."""

    name: str
    value: float
    bound: float
    ok: bool
    sense: Literal["at most", "at least"] = "at most"

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> Bound:
        return cls(name, value, bound, bool(value <= bound))

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> Bound:
        return cls(name, value, bound, bool(value >= bound), "at least")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One part of the demo."""

    name: str
    title: str
    figures: Mapping[str, Any]
    bounds: tuple[Bound, ...] = ()
    files: tuple[Path, ...] = ()


def write_report(path: Path, outcomes: Sequence[Outcome], seconds: float) -> None:
    """The figures and bounds of all parts as JSON."""
    report = {
        "seconds": round(seconds, 3),
        **{outcome.name: outcome.figures for outcome in outcomes},
        "bounds": [asdict(bound) for outcome in outcomes for bound in outcome.bounds],
    }
    write_json(path, report)


def print_bounds(outcome: Outcome) -> None:
    """Each figure of a part beside its bound."""
    rows = [
        [b.name, number(b.value), f"{b.sense} {number(b.bound)}", "ok" if b.ok else "OUT OF BOUNDS"]
        for b in outcome.bounds
    ]
    print_table(outcome.title, ["figure", ">value", ">bound", ""], rows)
