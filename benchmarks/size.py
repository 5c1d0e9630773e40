"""How large the project is, beside the budgets of benchmarks/budgets.toml.

python -m benchmarks.size            a line a figure; ends with 1 when one is more than 2 % over its budget
python -m benchmarks.size --write    the figures of now become the budgets
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
ROOM = 1.02


def main() -> int:
    """Print and compare, or write."""
    found, allowed = sizes(), tomllib.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
    if "--write" in sys.argv:
        text = "".join(f"{name} = {value}\n" for name, value in found.items())
        BUDGETS.write_text(
            f"# Written by `python -m benchmarks.size --write`; `make size` allows 2 % more.\n{text}"
        )
        allowed = found
    over = [name for name, value in found.items() if value > ROOM * allowed.get(name, 0)]
    for name, value in found.items():
        mark = "  over its budget" if name in over else ""
        sys.stdout.write(f"{name:24}{value:>8,}{allowed.get(name, 0):>10,}{mark}\n")
    return int(bool(over))


def sizes() -> dict[str, int]:
    """Every figure by its name."""
    product = [path for name in PRODUCT for path in modules(ROOT / name) if GENERATED not in path.parents]
    folders = {path.parent.relative_to(ROOT) for path in product}
    pages = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md")]
    leaves = [command for _, command in commands() if not isinstance(command, click.Group)]
    options = {
        max(parameter.opts, key=len)
        for command in leaves
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    return {
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
        "options": len(options),
        "node_toml_keys": len(list(keys(NodeConfig))),
        "classes_named_twice": sum(count > 1 for count in Counter(classes(product)).values()),
    }


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def words(page: Path) -> list[str]:
    """What has a letter or digit, between spaces."""
    return [word for word in page.read_text(encoding="utf-8").split() if re.search(r"\w", word)]


def classes(paths: Iterable[Path]) -> Iterator[str]:
    """The names of classes at the top of modules, one a place."""
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")


def keys(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a table of node.toml and of its tables."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        arms = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        tables = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)]
        yield from (key for table in tables for key in keys(table)) if tables else (name,)


if __name__ == "__main__":
    sys.exit(main())
