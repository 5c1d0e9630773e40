"""Writes the allowances for sets of points of an unknown model: the widest of the shipped models.

    python -m benchmarks.privacy.usual

`ddib model gate` must have measured each of them before.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ddib_fed.bridge.judging.point_sets import SIZES
from ddib_fed.bridge.judging.usual import FILE
from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.files import write_json
from ddib_fed.models.allowances import SetAllowances
from ddib_fed.models.shipped import pretrained

INTO = Path(__file__).resolve().parents[2] / "ddib_fed" / "bridge" / "judging" / FILE


def main() -> int:
    """Write the file."""
    every = [_own(domain) for domain in DOMAINS]
    found = []
    for place, count in enumerate(SIZES):
        rows = [own[place] for own in every]
        found.append(
            SetAllowances(
                count=count,
                slope_low=round(min(row.slope_low for row in rows), 3),
                slope_high=round(max(row.slope_high for row in rows), 3),
                shift=round(max(row.shift for row in rows), 3),
                dimension=round(min(row.dimension for row in rows), 4),
            )
        )
    write_json(INTO, [each.model_dump() for each in found])
    for each in found:
        print(each)
    return 0


def _own(domain: str) -> tuple[SetAllowances, ...]:
    allowances = pretrained(domain).allowances
    if allowances is None or [each.count for each in allowances.points] != list(SIZES):
        raise SystemExit(f"ddib model gate ddib_fed/models/pretrained/{domain} comes first")
    return allowances.points


if __name__ == "__main__":
    sys.exit(main())
