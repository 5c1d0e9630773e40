"""How large the project is, beside the ceilings of benchmarks/budgets.toml; ends with 1 when one is exceeded.

python -m benchmarks.size
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import types
import typing
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from pydantic import BaseModel

from benchmarks.path import modules_of
from ddib_fed.node.config import NodeConfig
from tests.cli.reference import commands

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = ROOT / "benchmarks" / "budgets.toml"
PRODUCT = ("ddib_fed", "source_node", "target_node")
GENERATED = ROOT / "ddib_fed" / "v1"
# Users of the public face: the rest of the product is the core.
EXTENSIONS = ("formats", "importers", "lab", "pacs", "paper", "web", "demo.py", "demo_figures.py")


def main() -> int:
    """Print each figure beside its ceiling; return 1 if one is above it."""
    ceilings = tomllib.loads(BUDGETS.read_text(encoding="utf-8"))
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
    leaves = [command for _, command in commands() if not isinstance(command, click.Group)]
    options = {name: set(options_of(command)) for name, command in commands()}
    extensions = [ROOT / "ddib_fed" / name for name in EXTENSIONS]
    core = [path for path in product if not any(path.is_relative_to(folder) for folder in extensions)]
    return {
        "core_lines": lines(core),
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
        "commands": len(leaves),
        "options": len(set().union(*options.values())),
        "options_of_translate": len(options["ddib translate"]),
        "node_toml_keys": len(list(keys(NodeConfig))),
        "classes_named_twice": sum(count > 1 for count in Counter(classes(product)).values()),
    }


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in [] if isinstance(command, click.Group) else command.params:
        if isinstance(parameter, click.Option):
            yield max(parameter.opts, key=len)


def words(page: Path) -> list[str]:
    """Return what stands between spaces and has a letter or digit."""
    return [word for word in page.read_text(encoding="utf-8").split() if re.search(r"\w", word)]


def classes(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the names of public classes at the top of modules."""
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")


def keys(model: type[BaseModel]) -> Iterator[str]:
    """Yield the keys of a table of node.toml and of its tables."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        arms = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        tables = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)]
        yield from (key for table in tables for key in keys(table)) if tables else (name,)


if __name__ == "__main__":
    sys.exit(main())
