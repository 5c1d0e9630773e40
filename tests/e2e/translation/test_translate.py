"""Two real processes over real mutual TLS: what goes wrong with a file, and docs/python.md, whose examples run."""

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.errors import NotFinite
from ddib_fed.testing import TwoNodes
from tests.client.scripted_source import TARGET, npy
from tests.e2e.harness import moons

pytestmark = pytest.mark.e2e


def test_the_logs_hold_no_traceback_and_no_warning(pair: TwoNodes) -> None:
    """Nodes for which every Python warning is an error translate, and refuse a bad file, without a trace of one."""
    with pair.client() as client:
        [*client.translate([npy(moons(50))], TARGET, Request(cycle=True))]
        with pytest.raises(NotFinite):
            client.submit([npy(np.full((3, 2), np.nan, np.float32))], TARGET)
    for node in pair.both:
        log = (node.log).read_text()
        assert "serving" in log
        assert not [line for line in log.splitlines() if "Traceback" in line or "Warning:" in line]


PAGE = Path(__file__).parents[3] / "docs" / "python.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(block: str, names: dict[str, Any]) -> None:
    """Run a block statement by statement; `# > TEXT` is what the statement before it shows or prints."""
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        printed = io.StringIO()
        code = ast.get_source_segment(block, statement) or ""
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr) and not code.startswith("print"):
                printed.write(repr(eval(code, names)))
            else:
                exec(code, names)
        following = lines[statement.end_lineno] if (statement.end_lineno or 0) < len(lines) else ""
        if following.startswith("# > "):
            assert printed.getvalue().strip() == following.removeprefix("# > "), code


def test_the_page_says_what_happens(pair, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"PROFILE": pair.profile}
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 5
    for block in blocks:
        run(block, names)
    assert (tmp_path / "results" / "scan.png").exists()
    assert (tmp_path / "results" / "scan.json").exists()
