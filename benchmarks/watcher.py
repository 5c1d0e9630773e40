"""Reads every result that appears below a folder at once, as somebody might who takes what lies there."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import numpy as np

from ddib_fed.files import has_sha256


class Watcher:
    """A thread that looks until it is stopped, at a file under its final name, and at a record with its files."""

    def __init__(self, out: Path) -> None:
        self._out, self._stop = out, threading.Event()
        self.seen: set[Path] = set()
        self.half: list[str] = []
        """Files that were not whole."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def records(self) -> int:
        return sum(path.suffix == ".json" for path in tuple(self.seen))

    def on_disk(self) -> int:
        """Return how many records lie there now, seen or not."""
        return len([*self._out.rglob("[!.]*.json")])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self._look()

    def _look(self) -> None:
        for path in self._out.rglob("[!.]*.*"):
            if path not in self.seen and path.suffix in {".npy", ".json"}:
                self.seen.add(path)
                self.half += [] if is_whole(path) else [str(path)]


def is_whole(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError):
        if path.suffix == ".npy":
            return bool(np.load(path).size)
        files = json.loads(path.read_bytes())["files"].values()
        return all(has_sha256(path.parent / file["file"], file["sha256"]) for file in files)
    return False
