"""TLS 1.3 only rests on an environment variable that must be set before grpc is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddib_fed

ROOT = Path(ddib_fed.__file__).parents[1]
IMPORTS = re.compile(r"^\s*(import grpc|from grpc|from ddib_fed\.v1 import \w+_pb2_grpc)", re.MULTILINE)


def packages() -> list[str]:
    """The packages with modules that import grpc."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("ddib_fed", "source_node", "target_node")
        for path in (ROOT / name).rglob("*.py")
        if path.parent.name != "v1" and IMPORTS.search(path.read_text())
    }
    assert {"ddib_fed.client", "ddib_fed.security", "source_node"} <= found
    return sorted(found)


@pytest.mark.parametrize("package", packages())
def test_importing_a_package_sets_the_cipher_suites_before_grpc(package) -> None:
    """Whichever package is imported first."""
    code = (
        f"import sys, os; import {package};"
        "assert os.environ['GRPC_SSL_CIPHER_SUITES'] == 'ECDHE-PSK-CHACHA20-POLY1305';"
        "assert 'grpc' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
