"""A folder of 1,500 files, three of them bad, through two nodes: interrupted, killed, and gone on with.

    python -m benchmarks.folders [--files 1500]

The same `ddib translate FOLDER --skip-bad` runs until it ends by itself: Ctrl-C ends the first run in the middle, kill
-9 the second. Meanwhile every file that appears under its final name is read at once. Counts come from the nodes' audit
logs. The networks are stubs, the rest is real. Ends with 1 when a file was computed twice, is missing, or was seen
half-written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ddib_fed.data.points import to_npy
from ddib_fed.testing import TwoNodes
from tests.audit_rows import records
from tests.chaos.load import STUB_TARGET, check_lines, stub_pair
from tests.node.tiny_nodes import npy

DDIB = (sys.executable, "-c", "from ddib_fed.cli.main import main; main()")
BAD = {
    "empty.npy": b"",
    "sub-1/text.npy": b"1, 2, 3",
    "sub-2/nan.npy": to_npy(np.full((40, 2), np.nan, np.float32)),  # which only the node sees
}
STEPS = "64"
POINTS = 40


@dataclass(frozen=True)
class Story:
    """What happened."""

    files: int
    exit_codes: tuple[int, ...]
    seconds: tuple[float, ...]
    on_disk: tuple[int, ...]
    jobs: int
    jobs_accepted_twice: int
    sent: int
    received: int
    computed_twice: int
    seen: int
    half_written: tuple[str, ...]
    left_over: tuple[str, ...]
    missing: int
    listed: int
    last_words: str

    @property
    def good(self) -> bool:
        """Whether every promise held."""
        done = self.files - len(BAD)
        return (
            (self.sent, self.received, self.computed_twice, self.jobs_accepted_twice) == (done, done, 0, 0)
            and not self.half_written
            and not self.left_over
            and (self.missing, self.listed) == (0, len(BAD))
            and self.exit_codes[-1] == 15
        )


class Watcher:
    """Reads every file that appears under its final name, at once, and again when its record is there."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._stop = threading.Event()
        self.seen: set[Path] = set()
        self.half: list[str] = []
        self.records = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self._look()

    def _look(self) -> None:
        for path in self._out.rglob("*"):
            if path in self.seen or path.name.startswith(".") or path.suffix not in {".npy", ".json"}:
                continue
            self.seen.add(path)
            if not _whole(path):
                self.half.append(str(path))
            self.records += path.suffix == ".json"


def _whole(path: Path) -> bool:
    """Whether a file is complete; a record is, when the files that it names are."""
    try:
        if path.suffix == ".npy":
            return np.load(path).shape == (POINTS, 2)
        files = json.loads(path.read_bytes())["files"].values()
        digests = [hashlib.sha256((path.parent / f["file"]).read_bytes()).hexdigest() for f in files]
        return digests == [f["sha256"] for f in files]
    except (OSError, ValueError, KeyError):
        return False


def fill(folder: Path, files: int) -> int:
    """So many files in sub-folders, the bad ones among them, and what a folder has besides; how many are good."""
    for number in range(files - len(BAD)):
        path = folder / f"sub-{number % 5}" / f"scan-{number:04}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(POINTS, number))
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("kept at home")
    (folder / ".hidden").write_text("")
    return files - len(BAD)


def tell(folder: Path, files: int, *, most_items: int = 1_000) -> Story:
    """Run the command until it ends by itself, after one Ctrl-C and one kill -9."""
    pair = stub_pair(folder / "pair")
    pair.source.configure({"max_items_per_job": most_items})
    done = fill(folder / "scans", files)
    with pair:
        return _tell(pair, folder / "scans", folder / "out", files, done)


def _tell(pair: TwoNodes, scans: Path, out: Path, files: int, done: int) -> Story:
    command = [*DDIB, "translate", str(scans), "--to", STUB_TARGET, "--out", str(out), "--skip-bad",
               "--evaluations", STEPS, "--profile", str(pair.profile)]  # fmt: skip
    watcher = Watcher(out)
    codes, seconds, on_disk = [], [], []
    said = ""
    try:
        for at, how in (
            (done // 3, signal.SIGINT),
            (2 * done // 3, signal.SIGKILL),
            (files, signal.SIGINT),
        ):
            began = time.monotonic()
            code, said = _run(command, watcher, at, how)
            codes.append(code)
            seconds.append(time.monotonic() - began)
            on_disk.append(sum(not path.name.startswith(".") for path in out.rglob("*.json")))
    finally:
        watcher.stop()
    lines = [
        (line["act"], line.get("job"), line.get("item")) for line in records(pair.source.config.paths.store)
    ]
    acts = Counter(line for line in lines if line[0] in {"job_accepted", "latent_sent"})
    check_lines(pair)
    hidden = [str(path) for path in out.rglob(".*")]
    good = [path for path in scans.rglob("*.npy") if str(path.relative_to(scans)) not in BAD]
    return Story(
        files=files,
        exit_codes=tuple(codes),
        seconds=tuple(seconds),
        on_disk=tuple(on_disk),
        jobs=len({line for line in acts if line[0] == "job_accepted"}),
        jobs_accepted_twice=sum(acts[line] > 1 for line in acts if line[0] == "job_accepted"),
        sent=sum(count for line, count in acts.items() if line[0] == "latent_sent"),
        received=sum(line["act"] == "latent_received" for line in records(pair.target.config.paths.store)),
        computed_twice=sum(acts[line] > 1 for line in acts if line[0] == "latent_sent"),
        seen=len(watcher.seen),
        half_written=tuple(watcher.half),
        left_over=tuple(hidden),
        missing=sum(not (out / path.relative_to(scans)).exists() for path in good),
        listed=sum(name in said for name in BAD),
        last_words=said[-2_000:],
    )


def _run(command: list[str], watcher: Watcher, at: int, how: signal.Signals) -> tuple[int, str]:
    """Run the command; `how` ends it when so many records were seen. Its exit code and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, text=True)
        while process.poll() is None and watcher.records < at:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(how)
        code = process.wait(timeout=600)
        said.seek(0)
        return code, said.read()


def main() -> int:
    """Print what happened as JSON; 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_500)
    with tempfile.TemporaryDirectory() as folder:
        story = tell(Path(folder), parser.parse_args().files)
    print(json.dumps(asdict(story) | {"held": story.good}, indent=1))
    return 0 if story.good else 1


if __name__ == "__main__":
    sys.exit(main())
