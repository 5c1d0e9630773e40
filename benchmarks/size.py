<<<<<<< HEAD
"""How large the project is, beside the ceilings of benchmarks/budgets.toml: `python -m benchmarks.size`.

A line a figure; ends with 1 when one is above its ceiling. Commands, options and keys of node.toml are those of
docs/cli.md, which a test holds to the code. The core is the product less what extends it: formats, importers, pacs,
web, lab, paper and the demo.
=======
"""How large the project is, beside the ceilings of benchmarks/budgets.toml; ends with 1 when one is exceeded.

python -m benchmarks.size
>>>>>>> origin/door
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ("ddib_fed", "source_node", "target_node")
GENERATED = ROOT / "ddib_fed" / "v1"
<<<<<<< HEAD
BESIDE = ("formats", "importers", "pacs", "web", "lab", "paper")


def main() -> int:
    """Print and compare."""
    ceilings = tomllib.loads((ROOT / "benchmarks" / "budgets.toml").read_text(encoding="utf-8"))
    above = 0
    for name, value in sizes().items():
        is_above = value > ceilings[name]
        above += is_above
        mark = "  above its ceiling" if is_above else ""
        sys.stdout.write(f"{name:24}{value:>8,}{ceilings[name]:>10,}{mark}\n")
    return int(above > 0)
=======
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
>>>>>>> origin/door


def sizes() -> dict[str, int]:
    """Return every figure by its name."""
    product = [path for name in PRODUCT for path in modules(ROOT / name) if GENERATED not in path.parents]
    folders = {path.parent.relative_to(ROOT) for path in product}
    pages = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "cli.md")]
<<<<<<< HEAD
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = options_of_commands(page)
    return {
        "core_lines": lines(path for path in product if is_core(path)),
=======
    leaves = [command for _, command in commands() if not isinstance(command, click.Group)]
    options = {name: set(options_of(command)) for name, command in commands()}
    extensions = [ROOT / "ddib_fed" / name for name in EXTENSIONS]
    core = [path for path in product if not any(path.is_relative_to(folder) for folder in extensions)]
    return {
        "core_lines": lines(core),
>>>>>>> origin/door
        "product_lines": lines(product),
        "modules": len(product),
        "folders": len(folders),
        "deepest_folder": max(len(folder.parts) for folder in folders),
        "test_lines": lines(modules(ROOT / "tests")),
        "benchmark_lines": lines(modules(ROOT / "benchmarks")),
        "pages": len(pages),
        "words_of_pages": sum(len(words(page)) for page in pages),
<<<<<<< HEAD
        "commands": len(commands),
        "options": len({option for options in commands.values() for option in options}),
        "options_of_translate": len(commands["ddib translate"]),
        "node_toml_keys": keys(page),
=======
        "modules_of_one_picture": len(
            modules_of((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
        ),
        "commands": len(leaves),
        "options": len(set().union(*options.values())),
        "options_of_translate": len(options["ddib translate"]),
        "node_toml_keys": len(list(keys(NodeConfig))),
>>>>>>> origin/door
        "classes_named_twice": sum(count > 1 for count in Counter(classes(product)).values()),
    }


def is_core(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return parts[0] != "ddib_fed" or not (parts[1] in BESIDE or parts[1].startswith("demo"))


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in [] if isinstance(command, click.Group) else command.params:
        if isinstance(parameter, click.Option):
            yield max(parameter.opts, key=len)


def words(page: Path) -> list[str]:
<<<<<<< HEAD
    """Return what has a letter or digit, between spaces."""
=======
    """Return what stands between spaces and has a letter or digit."""
>>>>>>> origin/door
    return [word for word in page.read_text(encoding="utf-8").split() if re.search(r"\w", word)]


def classes(paths: Iterable[Path]) -> Iterator[str]:
<<<<<<< HEAD
    """Yield the names of classes at the top of modules, one a place."""
=======
    """Yield the names of public classes at the top of modules."""
>>>>>>> origin/door
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from (node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")


<<<<<<< HEAD
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
=======
def keys(model: type[BaseModel]) -> Iterator[str]:
    """Yield the keys of a table of node.toml and of its tables."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        arms = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        tables = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, BaseModel)]
        yield from (key for table in tables for key in keys(table)) if tables else (name,)
>>>>>>> origin/door


if __name__ == "__main__":
    sys.exit(main())
