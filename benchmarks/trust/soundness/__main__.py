"""Attacks once more everything that an earlier attack found, and writes what came of it to docs/trust-report.md.

    python -m benchmarks.trust.soundness            every item; writes the page
    python -m benchmarks.trust.soundness 7 9 14     some of them; prints only

An attack that gets through is named, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.pages import between, markdown
from benchmarks.trust.report import PAGE, about
from benchmarks.trust.soundness import (  # noqa: F401 - each adds its attacks
    checkpoints,
    commands,
    lists,
    memory,
    names,
    peers,
    private,
    samples,
    setups,
    strangers,
    structure,
    wire,
)
from benchmarks.trust.soundness.attack import ATTACKS, Attack, Result, cell
from benchmarks.trust.soundness.nodes import ENDS
from ddib_fed.files import write_file

NAME, WRITER = "doors", "python -m benchmarks.trust.soundness"
COLUMNS = ("", "attack", "before", "now", "test")


def section(tried: list[tuple[Attack, Result]], seconds: float) -> str:
    """What the page says."""
    cases = sum(len(result.cases) for _, result in tried)
    through = sum(len(result.open) for _, result in tried)
    rows = tuple(
        (attack.item, attack.what, attack.before, cell(result), f"`{attack.test}`")
        for attack, result in tried
    )
    said = (
        f"{len(tried)} attacks with {cases} variants, of which {through} got through. The column “before” is what the "
        "release did in which each was found. “Now” gives exit codes with their numbers of variants, one of the "
        "messages, and what was measured."
    )
    return "\n\n".join([about("whole", seconds), said, markdown(COLUMNS, rows)])


def main() -> int:
    """Attack, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="*", type=int, metavar="ITEM", help="numbers of items; default: all")
    asked = parser.parse_args().items
    tried, started = [], time.monotonic()
    with ENDS:
        for attack in sorted(ATTACKS, key=lambda attack: attack.item):
            if asked and attack.item not in asked:
                continue
            tried.append((attack, result := attack.tried()))
            sys.stdout.write(f"{attack.item:2} {attack.what}\n   {cell(result)}\n")
            sys.stdout.flush()
    if not asked:
        page = between(
            PAGE.read_text(encoding="utf-8"), NAME, WRITER, section(tried, time.monotonic() - started)
        )
        write_file(PAGE, page.encode())
    return int(any(result.open for _, result in tried))


if __name__ == "__main__":
    sys.exit(main())
