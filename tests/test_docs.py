"""The pages: links lead somewhere, commands exist, tables are those of the JSON; and benchmarks can begin.

They run for minutes, so `make test` runs none of them.
"""

import ast
import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from benchmarks import tables
from benchmarks.path import modules_of
from ddib_fed.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
OURS = ("ddib_fed", "source_node", "target_node", "benchmarks", "tests")
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
CODE = sorted(path for name in OURS[:3] for path in (ROOT / name).rglob("*.py"))
OF_OTHERS = "--help --version --nproc-per-node --no-python --include --raw --bidx --proxytunnel --num-cpus --eta --key"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_image_is_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    images = {path for path in (ROOT / "docs").rglob("*") if path.suffix in {".png", ".svg"}}
    unused = {path for path in images if path.name not in text and path.parent.name != "satellite"}
    assert not unused


def test_commands_of_the_pages_exist() -> None:
    context = click.Context(cli)
    for page in PAGES:
        for line in re.findall(r"(?:^|`|\$ |run --rm )ddib ([a-z][a-z -]*)", page.read_text(), re.MULTILINE):
            command: click.Command | None = cli
            for word in line.split():
                if not isinstance(command, click.Group) or word.startswith("-"):
                    break
                command = command.get_command(context, word)
                assert command is not None, f"{page.name}: ddib {line}"


def test_pages_and_options_that_the_code_names_are_there() -> None:
    """Also in its hints. Options with underscores are the public code's, a few those of other programs."""
    rows = re.findall(r"^\| `(?:-\w, )?(--.*?)`", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    options = {*OF_OTHERS.split(), *re.findall(r"--[\w-]+", " ".join(rows))}
    for path in CODE:
        named = re.findall(r"docs/[\w/-]+\.md|(?<![\w-])--[a-z][a-z-]+(?!\w)", path.read_text())
        missing = [name for name in named if name not in options and not (ROOT / name).exists()]
        assert not missing, path


def test_the_tables_are_those_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks.tables` writes them."""
    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 0


def test_files_and_modules_that_pages_name_are_there() -> None:
    """Of tests in pages and the Makefile, and the modules of docs/architecture.md, which `benchmarks.path` writes."""
    named = [page.read_text() for page in (*PAGES, ROOT / "Makefile")]
    paths = {path for text in named for path in re.findall(r"\btests/[\w/]*\w(?:\.\w+)?", text)}
    modules = modules_of((ROOT / "docs" / "architecture.md").read_text())
    assert len(modules) > 50
    missing = [path for path in (*paths, *modules) if "*" not in path and not list(ROOT.glob(f"{path}*"))]
    assert not missing


# Benchmarks


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
    wanted = {pair: file for file in BENCHMARKS for pair in imported(file)}
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
        for path in (*PAGES, ROOT / "Makefile", *BENCHMARKS)
        for module in re.findall(r"python -m (benchmarks(?:\.[a-z_]+)+)(?![.\w])", path.read_text())
    }
    assert len({module for _, module in commands}) > 15
    assert not [f"{path}: python -m {module}" for path, module in sorted(commands) if not runs(module)]
