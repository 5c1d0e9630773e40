"""Where a table's figures come from: the commits at which they were measured, and whether the code differs since.

A file differs when it says something else than at that commit but for docstrings and comments.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS: tuple[str, ...] = (
    *("ddib_fed/model.py", "ddib_fed/metrics.py", "ddib_fed/datasets.py", "ddib_fed/diffusion", "ddib_fed/engine"),
    *("ddib_fed/networks", "ddib_fed/models", "models"),
)  # fmt: skip
"""What two models in one process run."""
CODE: tuple[str, ...] = (
    *MODELS,
    *("ddib_fed/api.py", "ddib_fed/figures.py", "ddib_fed/calibration", "ddib_fed/evaluation", "ddib_fed/data"),
    *("ddib_fed/client", "ddib_fed/node", "ddib_fed/protocol", "source_node", "target_node", "ddib_fed/training"),
)  # fmt: skip
PRODUCT: tuple[str, ...] = ("ddib_fed", "source_node", "target_node", "models")


def line(records: Iterable[Mapping[str, Any]], code: Sequence[str] = CODE) -> str:
    """Return the line below a table of these records: commit and date of each, and what differs since."""
    places = sorted({(str(one.get("date", ""))[:10], str(one.get("commit", ""))) for one in records})
    parts = [", ".join(filter(None, (commit or "an unknown commit", date))) for date, commit in places]
    files, unknown = set[str](), False
    for record in records:
        changed = differences(str(record.get("commit", "")), (*code, *benchmark_of(record)))
        unknown = unknown or changed is None
        files |= set(changed or ())
    marks = [f"{len(files)} files of the code differ since"] if files else []
    if unknown:
        marks += ["what differs since is not known here"]
    return f"Measured at {'; '.join([' and '.join(parts), *marks])}."


@cache
def differences(commit: str, code: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the files that say something else than at a commit; None without git or that commit."""
    name = commit.rstrip("+")
    names = _git("diff", "--name-only", "--no-renames", name, "--", *code) if name else None
    return None if names is None else tuple(file for file in names.split() if differs(name, file))


@cache
def differs(commit: str, file: str) -> bool:
    """Whether a file says something else than at a commit."""
    path, before = ROOT / file, _git("show", f"{commit}:{file}")
    if not file.endswith(".py") or before is None or not path.exists():
        return True
    return said(before) != said(path.read_text(encoding="utf-8"))


def said(text: str) -> str:
    """Return a module without docstrings and comments."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Texts that stand alone: docstrings, also those below constants.
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return False
    return isinstance(node.value.value, str)


def benchmark_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files of the benchmark that wrote a record: its own, and what it imports of this package."""
    words = str(record.get("command", "")).split()
    modules = [word for word in words if word.startswith("benchmarks.")][:1]
    files: dict[str, None] = {}
    while modules:
        module = modules.pop()
        file = f"{module.replace('.', '/')}.py"
        # How a benchmark is run and written down changes no figure.
        if file in files or module == "benchmarks.command" or not (ROOT / file).exists():
            continue
        files[file] = None
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("benchmarks"):
                modules += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(files)


def _git(*words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None
