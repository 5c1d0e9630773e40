"""Writes the section on speed of docs/benchmarks.md from docs/benchmarks/speed/*.json.

python -m benchmarks.speed.everything.page
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.pages import between, markdown
from benchmarks.speed.shared.harness import OUT, ROOT, limit_of

PAGE = ROOT / "docs" / "benchmarks.md"
WRITER = "benchmarks/speed/everything/page.py"


def write_page() -> None:
    """Write the section between its two marks: all bounds, then each benchmark, its long form where there is one."""
    records = {
        path.name.split(".")[0]: json.loads(path.read_text()) for path in sorted(OUT.glob("*.short.json"))
    }
    records |= {
        path.stem: json.loads(path.read_text()) for path in sorted(OUT.glob("*.json")) if "." not in path.stem
    }
    bounds = [
        (record["command"], *_bound(bound)) for record in records.values() for bound in record["bounds"]
    ]
    parts = [markdown(("command", "bound of", "measured", "bound", ""), tuple(bounds))] if bounds else []
    parts += [_section(record) for _, record in sorted(records.items())]
    PAGE.write_text(between(PAGE.read_text(), "speed", WRITER, "\n\n".join(parts)))


def _section(record: dict[str, Any]) -> str:
    where = record["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    machine = f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, {packages}"
    parts = [
        f"### `{record['command']}`",
        record["what"],
        f"{record['date']}, {machine}; {record['seconds']:.0f} s. Median (smallest to largest; runs).",
    ]
    if record["figures"]:
        parts.append(markdown(("", "measured"), tuple((f["what"], _value(f)) for f in record["figures"])))
    if record["bounds"]:
        parts.append(markdown(("", "measured", "bound", ""), tuple(map(_bound, record["bounds"]))))
    return "\n\n".join([*parts, *record["notes"]])


def _bound(bound: dict[str, Any]) -> tuple[str, str, str, str]:
    measured = f"{bound['value']:.3g} ({bound['low']:.3g} to {bound['high']:.3g}; {bound['runs']})"
    return bound["what"], measured, limit_of(bound), _held(bound)


def _value(figure: dict[str, Any]) -> str:
    return f"{figure['median']:.3g} {figure['unit']} ({figure['low']:.3g} to {figure['high']:.3g}; {figure['runs']})"


def _held(bound: dict[str, Any]) -> str:
    low, high = bound["at_least"], bound["at_most"]
    held = (high is None or bound["value"] <= high) and (low is None or bound["value"] >= low)
    return "held" if held else "**missed**"


if __name__ == "__main__":
    write_page()
