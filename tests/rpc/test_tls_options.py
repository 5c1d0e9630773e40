"""TLS 1.3 only rests on an environment variable that must be set before grpc is imported."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOTS = [
    Path(find_spec(name).submodule_search_locations[0]) for name in ("ddib_fed", "source_node", "target_node")
]


def imports_grpc(path: Path) -> bool:
    text = path.read_text()
    if "grpc" not in text:  # most of them: parsing all takes a second in every test process
        return False
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        if any(name == "grpc" or name.startswith("grpc.") or name.endswith("_pb2_grpc") for name in names):
            return True
    return False


@functools.cache
def packages() -> list[str]:
    """The top packages with modules that import grpc."""
    found = set()
    for root in ROOTS:
        for path in root.rglob("*.py"):
            parts = path.relative_to(root.parent).parts
            if "v1" not in parts and imports_grpc(path):
                found.add(".".join(parts[:2] if root.name == "ddib_fed" else parts[:1]))
    return sorted(found)


def test_packages_that_import_grpc_are_found() -> None:
    """The search below is over something."""
    assert {"ddib_fed.client", "ddib_fed.security", "source_node"} <= set(packages())


@pytest.mark.parametrize("package", packages())
def test_importing_a_package_sets_the_cipher_suites_before_grpc(package) -> None:
    """Whichever package is imported first."""
    code = (
        f"import sys, os; import {package};"
        "assert os.environ['GRPC_SSL_CIPHER_SUITES'] == 'ECDHE-PSK-CHACHA20-POLY1305';"
        "assert 'grpc' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOTS[0].parent), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
