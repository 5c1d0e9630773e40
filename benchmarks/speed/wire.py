"""Pictures of 39 MiB from a client to its node, beside a raw TLS 1.3 socket of the standard library.

    python -m benchmarks.speed.wire

`Client.submit` returns when the node has checked, hashed and written every file, and committed the job; the job is then
cancelled. The baseline moves the same bytes to another process, which drops them, or hashes each and writes it to the
disk. No process is pinned to a core: as nodes are run, gRPC's threads and the node's own may use all. All take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from PIL import Image

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.figures import figure, figures, interleaved, ratio
from benchmarks.speed.shared.nodes import pid_of, saved
from benchmarks.speed.shared.raw import MEBIBYTE, Raw
from ddib_fed.testing import TwoNodes, cpu_seconds

SETTINGS = {"threads": 1, "merge_pixels": 4096}


def measure(run: Run) -> Rows:
    """Submit pictures, and send the same bytes."""
    side, count = run.pick(smoke=300, long=4_000), run.pick(smoke=2, long=8)
    # Noise, which is hardly compressed.
    files = [saved(Image.effect_noise((side, side), 64).convert("RGB"), "PNG")] * count
    with tempfile.TemporaryDirectory(prefix="ddib-wire-") as name:
        folder = Path(name)
        with TwoNodes.create(folder, "satellite", "relief", settings=SETTINGS) as pair:
            keys = pair.source.folder / "state" / "pki"
            with closing(Raw((keys / "leaf.pem", keys / "leaf.key"), folder, len(files[0]))) as raw:
                submitted(pair, files[:1])
                raw.send(files[:1], keep=True)
                before, moved = cpu_seconds(pid_of(pair.source)), 0

                def submit() -> float:
                    nonlocal moved
                    moved += count
                    return submitted(pair, files)

                candidates = {
                    "Client.submit": submit,
                    "raw TLS socket": lambda: raw.send(files, keep=False),
                    "raw TLS socket, SHA-256, disk": lambda: raw.send(files, keep=True),
                }
                times = interleaved(candidates, run.pick(smoke=1, long=9))
                spent = cpu_seconds(pid_of(pair.source)) - before
    yield from figures(times, "MiB/s")
    yield figure("CPU of the node for each file", [1_000 * spent / moved], "ms")
    for name in list(candidates)[1:]:
        yield figure(f"Client.submit / {name}", ratio(times, "Client.submit", name), "")


def submitted(pair: TwoNodes, files: Sequence[bytes]) -> float:
    """Return the MiB a second until the job is accepted; it is cancelled and removed."""
    with pair.client() as client:
        client.list(1)  # connected
        started = time.perf_counter()
        job = client.submit(files, pair.to).job_id
        seconds = time.perf_counter() - started
        client.cancel(job)
        for _ in client.watch(job):
            pass
        client.delete(job)
    return sum(map(len, files)) / MEBIBYTE / seconds


if __name__ == "__main__":
    sys.exit(command(measure, "speed/wire"))
