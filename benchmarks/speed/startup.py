"""What one `ddib translate` costs beside its computing: from the start of the process to the file, less both legs.

    python -m benchmarks.speed.startup [--short]

Two warm nodes, pinned to a core each; the command is a process of its own on the source's core. The record that it
writes has the seconds of both legs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed.shared.harness import ROOT, Form, Report, main
from benchmarks.speed.shared.two_nodes import EVALUATIONS, pinned, png_files, two_cores, two_nodes

LEGS = ("encode", "remote")
# The command without its work: python, the command line, and what a client imports.
IMPORTS = "import ddib_fed.cli.main, ddib_fed.cli.translate, ddib_fed.client.profile"
# Of the release before: 1.2 s of wall for .75 s of computing, on an idle machine.
MOST_S = 0.45


def process_s(words: list[str], byte_code: Path) -> float:
    """Wall seconds of a Python process on the source's core, with byte code as pip writes it for what it installs."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(byte_code)}
    with pinned(two_cores()[0]):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)
        return time.perf_counter() - started


def translated(profile: Path, picture: Path, out: Path, byte_code: Path) -> tuple[float, float]:
    """Wall seconds of the command, and the seconds of both legs."""
    words = ["-c", "from ddib_fed.cli.main import main; main()", "translate", str(picture)]
    words += ["--to", "south.example/relief", "--out", str(out), "--evaluations", str(EVALUATIONS)]
    wall = process_s([*words, "--profile", str(profile)], byte_code)
    seconds = json.loads((out / f"{picture.stem}.json").read_text())["seconds"]
    return wall, sum(seconds[leg] for leg in LEGS)


def measure(form: Form) -> Report:
    """The fixed cost of one `ddib translate`."""
    report = Report(
        "One 32 px picture, satellite to relief, by `ddib translate` through two warm nodes: wall seconds from the "
        "start of the process to its end, and what is left of them without both legs. Byte code is there, as for an "
        "installed package, whatever PYTHONDONTWRITEBYTECODE says."
    )
    walls, computed, imports = [], [], []
    (picture,), _ = png_files(1)
    with two_nodes("satellite", "relief") as pair, tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "picture.png"
        given.write_bytes(picture)
        byte_code = Path(folder) / "byte-code"
        # Writes the byte code, and connects the nodes.
        translated(pair.profile, given, Path(folder) / "first", byte_code)
        for turn in range(form.pick(5, 15)):
            wall, legs = translated(pair.profile, given, Path(folder) / str(turn), byte_code)
            walls.append(wall)
            computed.append(legs)
            imports.append(process_s(["-c", IMPORTS], byte_code))
    report.add("ddib translate, start to end", walls, "s")
    report.add("both legs", computed, "s")
    report.add("python and the client's imports alone", imports, "s")
    report.bound(
        "fixed cost, s", [wall - legs for wall, legs in zip(walls, computed, strict=True)], at_most=MOST_S
    )
    return report


if __name__ == "__main__":
    raise SystemExit(main("startup", measure))
