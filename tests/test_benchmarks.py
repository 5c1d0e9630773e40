"""Benchmarks run for minutes, so `make test` runs none of them; that they can begin is checked here."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("ddib_fed", "source_node", "target_node", "benchmarks", "tests")
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", *FILES)
TYPED = sorted(PAGES)


def imported(file: Path) -> list[tuple[str, str]]:
    """(module, name) of every import of our own in a file, also those inside functions."""
    tree = ast.parse(file.read_text())
    return [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS
        for alias in node.names
    ]


@pytest.mark.slow
def test_what_benchmarks_import_exists() -> None:
    """A name that was moved fails here, not after an hour of measuring."""
    wanted = {pair: file for file in FILES for pair in imported(file)}
    assert len(wanted) > 100
    missing = [
        f"{file.relative_to(ROOT)}: from {module} import {name}"
        for (module, name), file in wanted.items()
        if not hasattr(importlib.import_module(module), name) and find_spec(f"{module}.{name}") is None
    ]
    assert not missing


def runs(module: str) -> bool:
    """Whether `python -m MODULE` finds something to run."""
    try:
        found = find_spec(module)
        is_package = found is not None and found.submodule_search_locations is not None
        return found is not None and (not is_package or find_spec(f"{module}.__main__") is not None)
    except ModuleNotFoundError:
        return False


def test_commands_of_benchmarks_in_the_docs_exist() -> None:
    """A benchmark that was moved fails here, not for the reader who repeats a figure."""
    commands = {
        (path.relative_to(ROOT), module)
        for path in TYPED
        for module in re.findall(r"python -m (benchmarks(?:\.[a-z_]+)+)(?![.\w])", path.read_text())
    }
    assert len({module for _, module in commands}) > 15
    assert not [f"{path}: python -m {module}" for path, module in sorted(commands) if not runs(module)]
