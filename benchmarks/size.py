"""How large the project is, beside the ceilings of benchmarks/budgets.toml: `python -m benchmarks.size`.

A line a figure; ends with 1 when one is above its ceiling. Commands, options and keys of node.toml are those of
docs/cli.md, which a test holds to the code. The core is the product less what extends it, and the demo.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.path import modules_of

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("ddib_fed", "source_node", "target_node")
GENERATED = ROOT / "ddib_fed" / "v1"
BESIDE = ("bids.py", "formats", "importers", "pacs", "web", "lab", "paper", "ray_actors.py")


def main() -> int:
    """Print and compare."""
    ceilings = tomllib.loads((ROOT / "benchmarks" / "budgets.toml").read_text(encoding="utf-8"))
    figures = sizes()
    for name, value in figures.items():
        mark = "  above its ceiling" if value > ceilings[name] else ""
        sys.stdout.write(f"{name:24}{value:>8,}{ceilings[name]:>10,}{mark}\n")
    return int(any(value > ceilings[name] for name, value in figures.items()))


def sizes() -> dict[str, int]:
    """Return every figure by its name."""
    product = [path for name in PRODUCT for path in modules(ROOT / name) if GENERATED not in path.parents]
    folders = {path.parent.relative_to(ROOT) for path in product}
    pages = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md")]
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = options_of_commands(page)
    return {
        "core_lines": lines(path for path in product if is_core(path)),
        "product_lines": lines(product),
        "modules": len(product),
        "folders": len(folders),
        "deepest_folder": max(len(folder.parts) for folder in folders),
        "test_lines": lines(modules(ROOT / "tests")),
        "benchmark_lines": lines(modules(ROOT / "benchmarks")),
        "pages": len(pages),
        "words_of_pages": sum(len(words(page)) for page in pages),
        "modules_of_one_picture": len(
            modules_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
        ),
        "commands": len(commands),
        "options": len({option for options in commands.values() for option in options}),
        "options_of_translate": len(commands["ddib translate"]),
        "node_toml_keys": keys(page),
        "classes_named_twice": sum(count > 1 for count in Counter(classes(product)).values()),
    }


def is_core(path: Path) -> bool:
    top, part = path.relative_to(ROOT).parts[:2]
    return top != "ddib_fed" or not (part in BESIDE or part.startswith(("demo", "study")))


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def words(page: Path) -> list[str]:
    """Return what has a letter or digit, between spaces."""
    return [word for word in page.read_text(encoding="utf-8").split() if re.search(r"\w", word)]


def classes(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the names of classes at the top of modules, one a place."""
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")


def options_of_commands(page: str) -> dict[str, list[str]]:
    """Return the options of each command that is no group, by their long names."""
    sections = re.split(r"^## `(ddib[^`]*)`$", page.partition("## `--set")[0], flags=re.MULTILINE)[1:]
    texts = dict(zip(sections[::2], sections[1::2], strict=True))
    leaves = [name for name in texts if not any(other.startswith(f"{name} ") for other in texts)]
    return {name: re.findall(r"^\| `(?:-\w, )?(--[\w-]+)", texts[name], re.MULTILINE) for name in leaves}


def keys(page: str) -> int:
    """Return how many keys the node.toml of the page has; those of [train] are options of a command."""
    template = page.rpartition("```toml")[2]
    tables = re.split(r"^\[(\w+)\]$", template, flags=re.MULTILINE)
    texts = [text for name, text in zip(tables[1::2], tables[2::2], strict=True) if name != "train"]
    return sum(len(re.findall(r"^(?:# )?\w+ = ", text, re.MULTILINE)) for text in texts)


if __name__ == "__main__":
    sys.exit(main())
