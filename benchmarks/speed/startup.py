"""What one `ddib translate` costs beside its computing: from the start of the process to the file, less both legs.

    python -m benchmarks.speed.startup

One 32 px picture, satellite to relief, through two warm nodes, pinned to a core each; the command is a process of its
own on the source's core. The record that it writes has the seconds of both legs. Byte code is there, as for an
installed package, whatever PYTHONDONTWRITEBYTECODE says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command import ROOT, Rows, Run, command
from benchmarks.speed.shared.figures import bound, figure
from benchmarks.speed.shared.nodes import pinned, png_files, two_cores, two_nodes

LEGS = ("encode", "remote")
# Of the release before: 1.2 s of wall for .75 s of computing, on an idle machine.
MOST_S = 0.45


def measure(run: Run) -> Rows:
    """The fixed cost of one `ddib translate`."""
    walls, computed, imports = list[float](), list[float](), list[float]()
    with two_nodes(run, "satellite", "relief") as pair, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "picture.png").write_bytes(png_files(run, 1)[0])
        options = ["--to", pair.to, "--evaluations", str(run.pick(smoke=8, long=48))]
        words = ["translate", str(folder / "picture.png"), *options, "--profile", str(pair.profile)]
        # The first, which is not counted, writes the byte code, and connects the nodes.
        for turn in range(1 + run.pick(smoke=1, long=25)):
            out = folder / str(turn)
            wall = process_s([*words, "--out", str(out)], folder / "byte-code")
            if turn:
                seconds = json.loads((out / "picture.json").read_text())["seconds"]
                walls.append(wall)
                computed.append(sum(seconds[leg] for leg in LEGS))
                imports.append(process_s(["translate", "--help"], folder / "byte-code"))
    yield figure("ddib translate, start to end", walls)
    yield figure("both legs", computed)
    yield figure("ddib translate --help alone", imports)
    fixed = [wall - legs for wall, legs in zip(walls, computed, strict=True)]
    yield bound(run, "fixed cost, s", fixed, at_most=MOST_S)


def process_s(words: list[str], byte_code: Path) -> float:
    """Return the wall seconds of a command on the source's core, with byte code as pip writes it."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(byte_code)}
    with pinned(two_cores()[0]):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "ddib_fed", *words], env=environment, check=True, capture_output=True
        )
        return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(command(measure, "speed/startup"))
