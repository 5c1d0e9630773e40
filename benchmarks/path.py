"""The modules of which a function runs for one picture, from `ddib translate` to its result, in that order.

    python -m benchmarks.path            writes the list into docs/architecture.md
    python -m benchmarks.path --check    ends with 1 if the page has another set of modules

Two nodes in this process, over mutual TLS; what runs before the command, as the nodes' start, is left out. Then the
modules are counted that a process of `ddib translate` imports before its first call.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from itertools import groupby
from pathlib import Path
from types import FrameType

from click.testing import CliRunner

from ddib_fed.cli.main import cli
from ddib_fed.models.bundle import Bundle, make_bundle
from tests.e2e.in_process import InProcessNodes
from tests.node.picture_examples import noise, pictures_model, png_bytes

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- path -->", "<!-- end of path -->"
PACKAGES = ("ddib_fed", "source_node", "target_node")
# A call asks the channel for a method of the service: then the process says what it has imported, and ends.
UNTIL_FIRST_CALL = f"""
import os, sys
def first_call(*_, **__):
    names = [name for name in sys.modules if name.partition('.')[0] in {PACKAGES}]
    os.write(1, str(len(names)).encode())
    os._exit(0)
from grpc import _channel
for kind in (_channel._UnaryUnaryMultiCallable, _channel._UnaryStreamMultiCallable, _channel._StreamUnaryMultiCallable):
    kind.__call__ = kind.with_call = kind.future = first_call
from ddib_fed.cli.main import main
main()
"""


class Crossed:
    """Modules of this project of which a function was called while `on`; what an import calls does not count."""

    def __init__(self) -> None:
        self.on = False
        self.files: dict[str, None] = {}
        self._imports = threading.local()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:  # noqa: ARG002
        code, depth = frame.f_code, getattr(self._imports, "depth", 0)
        if code.co_name == "<module>":
            self._imports.depth = depth + {"call": 1, "return": -1}.get(event, 0)
        elif self.on and event == "call" and depth <= 0 and self._of_the_picture():
            self.files.setdefault(code.co_filename, None)

    def _of_the_picture(self) -> bool:
        """Not what a node's threads do by themselves before the client connects."""
        return threading.current_thread() is threading.main_thread() or any(
            name.endswith("client/connection.py") for name in tuple(self.files)
        )

    def modules(self) -> list[str]:
        paths = (Path(file) for file in self.files)
        found = (path.relative_to(ROOT).as_posix() for path in paths if path.is_relative_to(ROOT))
        return [name for name in found if name.split("/")[0] in PACKAGES]


def main() -> int:
    """Write the list, or compare it; print both counts."""
    text, names = PAGE.read_text(encoding="utf-8"), crossed_modules()
    written = modules_of(text)
    sys.stdout.write(
        f"{len(names)} modules run for one picture; the command imports {imported()} before its first call\n"
    )
    if "--check" in sys.argv:
        sys.stdout.writelines(f"{name}\n" for name in sorted(set(written) ^ set(names)))
        return int(set(written) != set(names))
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{listed(names)}\n\n{END}{after}", encoding="utf-8")
    return 0


def modules_of(text: str) -> list[str]:
    """The modules that a page lists."""
    return [
        f"{folder}/{name}.py"
        for folder, rest in re.findall(
            r"^\d+\. `([\w/]+)`: (.+)$", text.partition(BEGIN)[2].partition(END)[0], re.MULTILINE
        )
        for name in rest.split(", ")
    ]


def listed(names: list[str]) -> str:
    """A numbered line for neighbours of one folder."""
    groups = groupby(map(Path, names), key=lambda path: path.parent)
    return "\n".join(
        f"{number}. `{folder.as_posix()}`: {', '.join(path.stem for path in paths)}"
        for number, (folder, paths) in enumerate(groups, 1)
    )


def imported() -> int:
    """Modules of this project in a fresh process that ran `ddib translate` up to its first call."""
    words = ["translate", "a.png", "--to", "south.example/relief", "--out", "out", "--profile", "client.toml"]
    with (
        tempfile.TemporaryDirectory(prefix="ddib-path-") as name,
        InProcessNodes(Path(name), *bundles()) as nodes,
    ):
        folder = nodes.profile().parent
        (folder / "a.png").write_bytes(png_bytes(noise()))
        done = subprocess.run(
            [sys.executable, "-c", UNTIL_FIRST_CALL, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.stdout.strip().isdigit():
        raise SystemExit(done.stdout + done.stderr)
    return int(done.stdout)


def bundles() -> list[Bundle]:
    return [make_bundle(*pictures_model(domain, seed=seed)) for domain, seed in (("scans", 1), ("relief", 2))]


def crossed_modules() -> list[str]:
    """Translate one picture with a cycle; what it crossed."""
    crossed = Crossed()
    threading.setprofile(crossed)
    sys.setprofile(crossed)
    with (
        tempfile.TemporaryDirectory(prefix="ddib-path-") as name,
        InProcessNodes(Path(name), *bundles()) as nodes,
    ):
        scan, profile = Path(name) / "scan.png", nodes.profile()
        scan.write_bytes(png_bytes(noise()))
        words = (scan, "--to", "south.example/relief", "--evaluations", 8, "--cycle", "--out", f"{name}/out")
        crossed.on = True
        done = CliRunner().invoke(cli, ["translate", *map(str, words), "--profile", str(profile)])
        crossed.on = False
        sys.setprofile(None)
        threading.setprofile(None)
    if done.exit_code != 0:
        raise SystemExit(done.output)
    return crossed.modules()


if __name__ == "__main__":
    sys.exit(main())
