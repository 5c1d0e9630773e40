"""Builds the wheel of an earlier commit, without its pretrained weights, for the tests of compatibility.

    python -m tests.make_earlier 8a4431a

writes tests/data/earlier/ddib_fed-VERSION+COMMIT-py3-none-any.whl.
`tests/e2e/operation/test_earlier.py` runs nodes from it. The file is the same, byte for byte, whenever it is made with
the same versions of pip and hatchling.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "data" / "earlier"
LEFT_OUT = "ddib_fed/models/pretrained/"


def build(commit: str, folder: Path) -> Path:
    """The wheel of a commit, whole."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder / "source", filter="data")
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        str(folder / "source"),
        "-w",
        str(folder),
    ]
    subprocess.run(words, check=True)
    return next(folder.glob("*.whl"))


def strip(wheel: Path, path: Path) -> None:
    """A copy without the weights, with the same time stamp on every file; RECORD stays as it was."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(path, "w") as stripped:
        for name in whole.namelist():
            if not name.startswith(LEFT_OUT):
                entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
                stripped.writestr(entry, whole.read(name), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(commit: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        wheel = build(commit, Path(name))
        path = FOLDER / wheel.name.replace("-py3", f"+{commit}-py3")
        FOLDER.mkdir(parents=True, exist_ok=True)
        strip(wheel, path)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
