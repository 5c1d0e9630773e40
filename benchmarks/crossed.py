"""Runs a module as `python -m` does, and writes which files of this project a function was called of meanwhile.

    python -m benchmarks.crossed FLAG OUT MODULE [WORD ...]

It counts while the file FLAG is there; OUT gets {"files": {path: monotonic seconds of its first call}, "imported": the
number of our modules at the first}. What an import calls does not count, nor what threads do that wait for the time.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ddib_fed", "source_node", "target_node")
CLIENT = "ddib_fed/client/connection.py"
"""The client's first step to the node; here the flag is set."""
LOOK_S = 0.02
OF_THE_CLOCK = ("inbound", "renewal", "open-calls", "janitor", "http")
"""Threads of a node that act by themselves, beside its main thread."""


class Crossed:
    """Files of which a function was called, and when first."""

    def __init__(self, flag: Path, *, client: bool) -> None:
        self.files: dict[str, float] = {}
        self.imported = 0
        self._flag, self._client = flag, client
        self._on = client
        self._imports = threading.local()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:  # noqa: ARG002
        code, depth = frame.f_code, getattr(self._imports, "depth", 0)
        if code.co_name == "<module>":
            self._imports.depth = depth + {"call": 1, "return": -1}.get(event, 0)
        elif self._on and event == "call" and depth <= 0 and code.co_filename not in self.files:
            self._cross(code.co_filename)

    def _cross(self, file: str) -> None:
        if self._client or not _is_of_the_clock(threading.current_thread()):
            self.files[file] = time.monotonic()
        if self._client and file.endswith(CLIENT):
            self._begin()

    def _begin(self) -> None:
        self.imported = sum(name.partition(".")[0] in PACKAGES for name in tuple(sys.modules))
        self._flag.touch()
        time.sleep(5 * LOOK_S)  # until the nodes have seen it

    def watch(self, out: Path) -> None:
        """Follow the flag in a node, and write when it is gone."""
        while not self._flag.exists():
            time.sleep(LOOK_S)
        self._on = True
        while self._flag.exists():
            time.sleep(LOOK_S)
        self._on = False
        self.write(out)

    def write(self, out: Path) -> None:
        inside = {
            Path(file).relative_to(ROOT).as_posix(): when
            for file, when in self.files.items()
            if any(Path(file).is_relative_to(ROOT / name) for name in PACKAGES)
        }
        whole = out.with_suffix(".part")
        whole.write_text(json.dumps({"files": inside, "imported": self.imported}))
        whole.rename(out)


def _is_of_the_clock(thread: threading.Thread) -> bool:
    return thread is threading.main_thread() or thread.name in OF_THE_CLOCK


def main() -> None:
    flag, out, module, *words = sys.argv[1:]
    client = module == PACKAGES[0]
    crossed = Crossed(Path(flag), client=client)
    if not client:
        threading.Thread(target=crossed.watch, args=(Path(out),), daemon=True).start()
    sys.argv = [module, *words]
    try:
        run = importlib.import_module(f"{module}.__main__").main
        threading.setprofile(crossed)
        sys.setprofile(crossed)
        run()
    finally:
        sys.setprofile(None)
        if client:
            crossed.write(Path(out))
            Path(flag).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
