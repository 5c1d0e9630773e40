"""Reads mutants.toml: changes to single files, each of which breaks a fact that the tests named with it must notice.

Loads nothing but the standard library, so that the suite checks in no time that the list fits the code.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "benchmarks" / "mutants.toml"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change to one file; `tests` are pytest arguments, `harmless` the reason why it may survive."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    harmless: str = ""

    def applied(self, source: str) -> str:
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the old text occurs {count} times in {self.file}")
        return source.replace(self.old, self.new)


def mutations(path: Path = LIST) -> list[Mutation]:
    """All mutations of the list; a table's `file` and `tests` hold for its mutations that name none."""
    found = []
    for group in tomllib.loads(path.read_text())["module"]:
        for entry in group["mutation"]:
            fields = {"file": group["file"], "tests": group["tests"], **entry}
            found.append(Mutation(**{**fields, "tests": tuple(fields["tests"])}))
    return found
