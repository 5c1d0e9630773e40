"""How many names users of the face import from behind it: `python -m benchmarks.inside [CHECKOUT]`, a line a folder.

The users are the folders of the product that extend the core, which may import one another, and benchmarks, which may
not. Each name of each import statement counts.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USERS = ("cli", "web", "pacs", "importers", "formats", "lab", "paper", "demo", "benchmarks")
FACE = (
    "errors",
    "testing",
    "terminal",
    "files",
    "importing",
    "studies",
    "extensions",
    "datasets",
    "metrics",
    "names",
)
ATTACKS = "lab.report"
"""Public too, of a package that is not."""
OTHERS = ("source_node", "target_node", "tests")


def main() -> int:
    """Print the names of each folder, and of all."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    counts: Counter[str] = Counter()
    for user in USERS:
        for file in files_of(root, user):
            counts[user] += len(list(behind(root, file, user)))
        print(f"{user:12}{counts[user]:6,}")
    print(f"{'all':12}{counts.total():6,}")
    return 0


def files_of(root: Path, user: str) -> list[Path]:
    if user == "benchmarks":
        return sorted((root / user).rglob("*.py"))
    product = root / "ddib_fed"
    return sorted([*product.glob(f"{user}*.py"), *(product / user).rglob("*.py")])


def behind(root: Path, file: Path, user: str) -> Iterator[str]:
    """Yield the names that a file imports from behind the face, with their modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in whole if is_inside(root, name, user))


def is_inside(root: Path, name: str, user: str) -> bool:
    """Whether a dotted name is behind the face for a user."""
    package, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    if package != "ddib_fed" or not part:
        return package in OTHERS
    product = root / "ddib_fed"
    is_module = "." in rest or (product / part).is_dir() or (product / f"{part}.py").exists()
    is_user = user != "benchmarks" and part.startswith(USERS)
    return is_module and not is_user and part not in FACE and not rest.startswith(ATTACKS)


if __name__ == "__main__":
    sys.exit(main())
