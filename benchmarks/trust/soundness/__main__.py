"""Attacks once more everything that an earlier attack found, and writes what came of it to docs/trust-report.md.

    python -m benchmarks.trust.soundness            every item
    python -m benchmarks.trust.soundness 7 9 14     some of them; the page keeps the rows of the others

An attack that gets through is named, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import re
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
COUNTS, ITEM = re.compile(r"\| (\d+) of (\d+) held"), re.compile(r"\| (\d+) \|")
COLUMNS = ("", "attack", "before", "now", "test")


def rows(tried: list[tuple[Attack, Result]]) -> list[str]:
    """Lines of the table."""
    cells = tuple(
        (attack.item, attack.what, attack.before, cell(result), f"`{attack.test}`")
        for attack, result in tried
    )
    return markdown(COLUMNS, cells).splitlines()[2:]


def section(lines: list[str], run: str) -> str:
    """What the page says of these lines of the table; `run` is of which commit, when and where it was."""
    counts = [COUNTS.search(line) for line in lines]
    held, cases = (sum(int(found[group]) for found in counts if found) for group in (1, 2))
    said = (
        f"{len(lines)} attacks with {cases} variants, of which {cases - held} got through. The column “before” is what "
        "the release did in which each was found. “Now” gives exit codes with their numbers of variants, one of the "
        "messages, and what was measured."
    )
    return "\n\n".join([run, said, "\n".join([*markdown(COLUMNS, ()).splitlines(), *lines])])


def put(page: str, tried: list[tuple[Attack, Result]], run: str, items: list[int]) -> str:
    """The page with these results; of other items it keeps its lines, and the sentence on their run."""
    old = (
        page.split(f"<!-- {NAME}: written by {WRITER} -->")[1]
        .split(f"<!-- end of {NAME} -->", maxsplit=1)[0]
        .strip()
        .splitlines()
    )
    kept = (
        [line for line in old if (found := ITEM.match(line)) and int(found[1]) not in items] if items else []
    )
    if kept:
        run = f"{old[0].partition(' Again: ')[0]} Again: {', '.join(map(str, items))}. {run}"
    lines = sorted([*kept, *rows(tried)], key=lambda line: int(line.split("|")[1]))
    return between(page, NAME, WRITER, section(lines, run))


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
    run = about("whole" if not asked else "single", time.monotonic() - started)
    write_file(PAGE, put(PAGE.read_text(encoding="utf-8"), tried, run, asked).encode())
    return int(any(result.open for _, result in tried))


if __name__ == "__main__":
    sys.exit(main())
