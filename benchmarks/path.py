"""The modules that one picture crosses from `ddib translate` to its result: every module of which a function runs.

    python -m benchmarks.path

Two nodes in this process, over mutual TLS; what runs before the command, as the nodes' start, is left out.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

from click.testing import CliRunner

from ddib_fed.cli.main import cli
from ddib_fed.models.bundle import make_bundle
from tests.e2e.two_nodes import TwoNodes
from tests.node.picture_examples import noise, pictures_model, png_bytes

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ddib_fed", "source_node", "target_node")


class Crossed:
    """Modules of this project of which a function was called while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.files: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:  # noqa: ARG002
        if self.on and event == "call" and frame.f_code.co_name != "<module>":
            self.files.setdefault(frame.f_code.co_filename, None)

    def modules(self) -> list[str]:
        paths = (Path(file) for file in self.files)
        found = (path.relative_to(ROOT).as_posix() for path in paths if path.is_relative_to(ROOT))
        return [name for name in found if name.split("/")[0] in PACKAGES]


def main() -> None:
    """Translate one picture with a cycle and print what it crossed."""
    crossed = Crossed()
    threading.setprofile(crossed)
    sys.setprofile(crossed)
    with tempfile.TemporaryDirectory(prefix="ddib-path-") as name:
        folder = Path(name)
        bundles = (
            make_bundle(*pictures_model(domain, seed=seed)) for domain, seed in (("scans", 1), ("relief", 2))
        )
        nodes = TwoNodes(folder, *bundles)
        try:
            (folder / "scan.png").write_bytes(png_bytes(noise()))
            command = ["translate", folder / "scan.png", "--to", "south.example/relief", "--evaluations", 8, "--cycle",
                       "--out", folder / "out", "--profile", nodes.profile()]  # fmt: skip
            crossed.on = True
            done = CliRunner().invoke(cli, [str(word) for word in command], catch_exceptions=False)
            crossed.on = False
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            nodes.close()
    if done.exit_code != 0:
        raise SystemExit(done.output)
    names = crossed.modules()
    sys.stdout.write("\n".join([*names, f"{len(names)} modules", ""]))


if __name__ == "__main__":
    main()
