"""`python -m benchmarks.trust.soundness`: every hole is attacked, the named tests exist, an open hole is told."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.pages import between
from benchmarks.trust.report import PAGE
from benchmarks.trust.soundness.attack import Attack, Result, Said, cell

ROOT = Path(__file__).parents[2]
ITEMS = range(1, 17)


def attacks() -> list[tuple[int, str]]:
    """Number of the hole and test of each attack, as the sources say it: importing them loads diffusers."""
    found = []
    for path in sorted((ROOT / "benchmarks" / "trust" / "soundness").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "attack":
                (test,) = [word.value for word in node.keywords if word.arg == "test"]
                found.append((ast.literal_eval(node.args[0]), ast.literal_eval(test)))
    return found


def test_every_hole_is_attacked() -> None:
    """None is left out."""
    assert set(Counter(item for item, _ in attacks())) == set(ITEMS)


@pytest.mark.parametrize("test", sorted({test for _, test in attacks()}))
def test_the_test_that_is_named_is_there(test: str) -> None:
    """A renamed test is noticed here."""
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_an_attack_that_gets_through_is_told() -> None:
    """A wrong exit code, a message that names nothing, a traceback, and an attack that breaks."""

    def perform(folder: Path, result: Result) -> None:
        assert folder.is_dir()
        result.refused("held", Said(3, "", "error: deep.png is too deep", 0.1), "deep.png", codes=(3,))
        result.refused("accepted", Said(0, "done", "", 0.1), "deep.png")
        result.refused("unnamed", Said(3, "", "error: no", 0.1), "deep.png")
        result.refused("a traceback", Said(3, "", "error: deep.png\nTraceback", 0.1), "deep.png")
        raise OSError("broken | off")

    tried = Attack(1, "deep files", "white", "tests/x.py::test_x", perform).tried()
    assert [case.what for case in tried.open] == ["accepted", "unnamed", "a traceback", "the attack itself"]
    text = cell(tried)
    assert text.startswith(
        "1 of 5 held; exit 3 (3), exit 0 (1); “deep.png is too deep”; **got through: accepted: done**"
    )
    assert r"OSError: broken \| off" in text


def test_the_page_has_a_place_for_them() -> None:
    """Where the command writes."""
    text = PAGE.read_text(encoding="utf-8")
    assert "NEW" in between(text, "doors", "python -m benchmarks.trust.soundness", "NEW")
