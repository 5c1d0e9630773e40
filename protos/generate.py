"""Turns protos/ddib_fed/v1/*.proto into ddib_fed/v1; with --check, says whether what is committed is that.

The generator's version is pinned in pyproject.toml: generated code asks for at least the grpcio and protobuf it was
made with, so the pin is also the floor of both.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(into: Path) -> list[Path]:
    """Write the generated modules under `into`; returns their paths relative to it."""
    sources = sorted((ROOT / "protos/ddib_fed/v1").glob("*.proto"))
    plugin = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT / 'protos'}",
            f"--plugin=protoc-gen-mypy_grpc={plugin / 'protoc-gen-mypy_grpc'}",
            f"--python_out={into}",
            f"--pyi_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_grpc_out=quiet:{into}",
            *map(str, sources),
        ],
        check=True,
    )
    made = []
    for path in sorted((into / "ddib_fed/v1").glob("*_pb2*")):
        name = path.name.partition("_pb2")[0]
        if "_grpc" in path.name and "service " not in (ROOT / f"protos/ddib_fed/v1/{name}.proto").read_text():
            path.unlink()  # protoc writes empty service modules for files without services
        else:
            made.append(path.relative_to(into))
    return made


def main() -> int:
    """Entry of `make proto` and `make drift`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; end with 1 when the code has drifted"
    )
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
        committed = {p.relative_to(ROOT) for p in (ROOT / "ddib_fed/v1").glob("*_pb2*")}
        stale = [
            p for p in made if not (ROOT / p).exists() or not filecmp.cmp(ROOT / p, Path(folder) / p, False)
        ]
        stale += sorted(committed - set(made))
    for path in stale:
        print(f"drift: {path} is not what protos/ gives; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
