"""A folder of 1,500 files, three of them bad, through two nodes: interrupted, killed, and gone on with.

    python -m benchmarks.folders

The same `ddib translate FOLDER --skip-bad` runs until it ends by itself: Ctrl-C ends the first run in the middle, kill
-9 the second. Meanwhile every file that appears is read at once. Counts come from the audit logs; all should be 0.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import Rows, Run, command
from benchmarks.watcher import Watcher
from ddib_fed.datasets import draw
from ddib_fed.testing import NodeProcess, TwoNodes

POINTS = 40
BAD = ("empty.npy", "sub-1/text.npy", "sub-2/nan.npy")  # the last is bad for the node alone
SETTINGS = {"threads": 1, "merge_pixels": 4096}


def fill(folder: Path, files: int) -> list[str]:
    """Write so many files in sub-folders, the bad ones among them; return the names of the good ones."""
    names = [f"sub-{number % 5}/scan-{number:04}.npy" for number in range(files - len(BAD))]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, draw("moons", POINTS, number))
    for name, content in zip(BAD, (b"", b"1, 2, 3"), strict=False):
        (folder / name).write_bytes(content)
    np.save(folder / BAD[2], np.full((POINTS, 2), np.nan, np.float32))
    return names


def acts(node: NodeProcess, act: str) -> list[int]:
    """Return how often a node did an act on each item, by its audit log."""
    records = [line.record for line in node.node.audit.entries()]
    keys = [(one.get("job") or one.get("request"), one.get("item")) for one in records if one["act"] == act]
    return list(Counter(keys).values())


def tell(folder: Path, files: int, *, most_items: int = 1_000, evaluations: int = 64) -> dict[str, Any]:
    """Run the command until it ends by itself, after one Ctrl-C and one kill -9; return what happened."""
    names, out, runs = fill(folder / "scans", files), folder / "out", list[dict[str, Any]]()
    with TwoNodes.create(folder / "pair", settings=SETTINGS | {"max_items_per_job": most_items}) as pair:
        words = ["translate", str(folder / "scans"), "--to", pair.to, "--out", str(out), "--skip-bad"]
        words += ["--evaluations", str(evaluations), "--profile", str(pair.profile)]
        watcher = Watcher(out)
        try:
            for share, how in ((1 / 3, signal.SIGINT), (2 / 3, signal.SIGKILL), (2, signal.SIGINT)):
                runs.append(interrupted(words, watcher, int(share * len(names)), how))
        finally:
            watcher.stop()
        jobs, sent = (acts(pair.source, act) for act in ("job_accepted", "latent_sent"))
        received = acts(pair.target, "latent_received")
    story = {
        "sent": sum(sent) - len(names),
        "received": sum(received) - len(names),
        "computed_twice": sum(count > 1 for count in sent),
        "accepted_twice": sum(count > 1 for count in jobs),
        "missing": sum(not (out / name).exists() for name in names),
        "half_written": len(watcher.half),
        "left_over": len([*out.rglob(".*")]),
        "bad_not_named": sum(name not in runs[-1]["said"] for name in BAD),
        "other_ends": int(runs[-1]["code"] != 15),
    }
    shown = [{key: value for key, value in one.items() if key != "said"} for one in runs]
    return {"files": files, "jobs": len(jobs), "runs": shown, **story, "held": not any(story.values())}


def interrupted(words: list[str], watcher: Watcher, at: int, how: signal.Signals) -> dict[str, Any]:
    """Run the command; `how` ends it when so many records were seen. Return its exit code and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-m", "ddib_fed", *words], stdout=said, stderr=said)
        while process.poll() is None and watcher.records() < at:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(how)
        code = process.wait(timeout=600)
        said.seek(0)
        return {"code": code, "on_disk": watcher.on_disk(), "said": said.read()}


def measure(run: Run) -> Rows:
    """Tell the story of one folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield tell(Path(folder), run.pick(smoke=12, long=1_500), evaluations=run.pick(smoke=8, long=64))


if __name__ == "__main__":
    sys.exit(command(measure, "folders"))
