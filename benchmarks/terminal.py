"""Draws docs/images/terminal.png: what README's commands for two institutions print, from a run on this machine.

    python -m benchmarks.terminal

The commands are README's own. Hosts become ports of loopback while they run, and are shown as README has them; of
`next:` only that it is there; lines that are too long are cut.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from tests.e2e.harness import free_port

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "terminal.png"
COLUMNS, SIZE, LINE = 116, 13, 17
BACKGROUND, PROMPT, TYPED, PRINTED = "#16181d", "#7fd962", "#ffffff", "#b8bfcc"
START_S = 120.0
_CODE = re.compile(r"\b\d{3}-\d{3}-\d{3}\b")
_LOG = re.compile(r"\d{4}-\d\d-\d\d ")


def commands() -> list[tuple[str, str]]:
    section = (ROOT / "README.md").read_text().split("\n## Two institutions")[1].split("\n## ")[0]
    typed = re.findall(r"^(east|west)\$ (.+)$", section, re.MULTILINE)
    return [(who, line) for who, line in typed if "pip install" not in line]


class Run:
    """README's commands in two folders, and what each has printed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes, self.code = folder, list[subprocess.Popen[bytes]](), ""
        self.ports = {"east.example:7443": free_port(), "west.example:7444": free_port()}
        (folder / "ddib-fed").symlink_to(ROOT)

    def type(self, who: str, line: str) -> Path:
        """Run a line; the file of what it prints. A node goes on."""
        place = self.folder / who
        place.mkdir(exist_ok=True)
        for shown, port in self.ports.items():
            line = line.replace(shown, f"localhost:{port}")
        line = re.sub(r"^ddib", f"exec {shlex.quote(str(Path(sys.executable).parent))}/ddib", line)
        log = self.folder / f"{len(list(self.folder.iterdir()))}.txt"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["/bin/sh", "-c", line.replace("CODE", self.code)], cwd=place, stdout=file, stderr=file
            )
        if " serve" not in line:
            if process.wait():
                raise SystemExit(f"{line}:\n{log.read_text()}")
            return log
        self.nodes.append(process)
        if "--pair-with" not in line:
            self.code = self._wait(log, _CODE)
        return log

    def _wait(self, log: Path, what: re.Pattern[str]) -> str:
        deadline = time.monotonic() + START_S
        while not (found := what.search(log.read_text())):
            if time.monotonic() > deadline or any(node.poll() is not None for node in self.nodes):
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        return found[0]

    def wait_serving(self, logs: list[Path]) -> None:
        for log in logs:
            self._wait(log, re.compile(r": serving "))

    def close(self) -> None:
        for node in self.nodes:
            node.terminate()
            node.wait()

    def printed(self, log: Path) -> Iterator[str]:
        """The lines of a command, as README would have them."""
        text = log.read_text().replace(str(self.folder), "~").rstrip()
        for shown, port in self.ports.items():
            text = text.replace(f"localhost:{port}", shown).replace(f":{port}", f":{shown.partition(':')[2]}")
        for line in text.split("\n"):
            if _LOG.match(line) and "serving" not in line:
                continue
            yield line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "…"
            if line == "next:":
                yield "  …"
                return


def draw(lines: list[tuple[str, str, str]], path: Path) -> None:
    """Draw lines of (prompt, typed, printed)."""
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"), SIZE)
    width = font.getlength("m")
    picture = Image.new("RGB", (int(width * (COLUMNS + 2)), LINE * (len(lines) + 1)), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for row, parts in enumerate(lines):
        column = 1
        for text, colour in zip(parts, (PROMPT, TYPED, PRINTED), strict=True):
            pen.text((width * column, LINE * row + LINE // 2), text, colour, font)
            column += len(text)
    picture.quantize(16).save(path, optimize=True)


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    out = parser.parse_args().out
    done: list[tuple[str, str, Path]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        try:
            for who, line in commands():
                if line.startswith("ddib translate"):
                    run.wait_serving([log for _, typed, log in done if " serve" in typed])
                done.append((who, line, run.type(who, line)))
            lines: list[tuple[str, str, str]] = []
            for who, line, log in done:
                lines.append((f"{who}$ ", line.replace("CODE", run.code), ""))
                lines += [("", "", each) for each in run.printed(log)]
                lines.append(("", "", ""))
        finally:
            run.close()
    draw(lines[:-1], out)
    print(f"{out}: {out.stat().st_size:,} bytes, {len(lines)} lines")


if __name__ == "__main__":
    main()
