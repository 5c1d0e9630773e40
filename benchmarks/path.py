"""The modules of which a function runs for one picture, from `ddib translate` to its result, in that order.

    python -m benchmarks.path            writes the list into docs/architecture.md
    python -m benchmarks.path --check    ends with 1 if the page has another set of modules

Two nodes and the command, each a process of its own, over mutual TLS; what runs before the client connects, as the
nodes' start, is left out. It says too how many modules the command has imported by then.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image

from ddib_fed.testing import NodeProcess, Process, TwoNodes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- path -->", "<!-- end of path -->"
SETTINGS = {"threads": 1, "merge_pixels": 1024}
WAIT_S = 60.0
WIDTH = 100


def main() -> int:
    """Write the list, or compare it; print both counts."""
    text = PAGE.read_text(encoding="utf-8")
    names, imported = crossed_modules()
    written = modules_of(text)
    sys.stdout.write(
        f"{len(names)} modules run for one picture; {imported} are imported before it connects\n"
    )
    if "--check" in sys.argv:
        sys.stdout.writelines(f"{name}\n" for name in sorted(set(written) ^ set(names)))
        return int(set(written) != set(names))
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{listed(names)}\n\n{END}{after}", encoding="utf-8")
    return 0


def modules_of(text: str) -> list[str]:
    """Return the modules that a page lists."""
    block = text.partition(BEGIN)[2].partition(END)[0]
    groups = re.findall(r"(?<!\S)([\w/]+)/\{?([\w,]+)\}?(?!\S)", block)
    return [f"{folder}/{name}.py" for folder, names in groups for name in names.split(",")]


def listed(names: list[str]) -> str:
    """Return a block of the modules, neighbours of one folder in braces as for a shell."""
    groups = []
    for folder, paths in groupby(map(Path, names), key=lambda path: path.parent):
        stems = ",".join(path.stem for path in paths)
        groups.append(f"{folder.as_posix()}/{f'{{{stems}}}' if ',' in stems else stems}")
    lines = textwrap.fill(" ".join(groups), WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"```\n{lines}\n```"


def crossed_modules() -> tuple[list[str], int]:
    """Translate one picture with a cycle; return what it crossed, and the imports of the command."""
    with tempfile.TemporaryDirectory(prefix="ddib-path-") as name:
        folder = Path(name)

        def command(out: str, module: str, words: Sequence[str]) -> list[str]:
            places = [str(folder / "flag"), str(folder / out)]
            return [sys.executable, "-m", "benchmarks.crossed", *places, module, *words]

        def launch(node: NodeProcess, words: Sequence[str]) -> Process:
            with node.log.open("ab") as log:
                return subprocess.Popen(
                    command(f"{node.role}.json", f"{node.role}_node", words), stdout=log, stderr=log, cwd=ROOT
                )

        with TwoNodes.create(folder, "satellite", "relief", settings=SETTINGS, launch=launch) as nodes:
            Image.effect_noise((32, 32), 64).convert("RGB").save(folder / "scan.png")
            options = ["--to", nodes.to, "--evaluations", "8", "--cycle", "--out", str(folder / "out")]
            words = ["translate", str(folder / "scan.png"), *options, "--profile", str(nodes.profile)]
            words = command("client.json", "ddib_fed", words)
            subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
            reports = [folder / f"{who}.json" for who in ("client", "source", "target")]
            deadline = time.monotonic() + WAIT_S
            while not all(map(Path.exists, reports)) and time.monotonic() < deadline:
                time.sleep(0.02)
            parts = [json.loads(report.read_text()) for report in reports]
    first: dict[str, float] = {}
    for part in parts:
        for file, when in part["files"].items():
            first[file] = min(when, first.get(file, when))
    return sorted(first, key=lambda file: first[file]), parts[0]["imported"]


if __name__ == "__main__":
    sys.exit(main())
