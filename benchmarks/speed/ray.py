"""`executor = "ray"`: two actors beside one, an actor that is killed, and a head that is killed under a node's job.

    python -m benchmarks.speed.ray

The head is a cluster of this machine; what is killed is everything of it: GCS, raylet, actors, with SIGKILL. A second
one is started at the same address. Without Ray nothing is measured; `make test-ray` installs it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command import ROOT, Rows, Run, command
from benchmarks.speed.shared.figures import bound, figure
from benchmarks.speed.shared.nodes import png_files
from benchmarks.speed.workers import measure_pools
from ddib_fed import Client, Request, Settings
from ddib_fed.testing import TwoNodes, free_port

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "benchmark",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


class Head:
    """A head of this machine; its processes are those whose command line names its folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}"]
        options = ["--node-ip-address=127.0.0.1", "--num-cpus=4", "--include-dashboard=false"]
        memory = ["--object-store-memory=200000000", f"--temp-dir={folder}", "--disable-usage-stats"]
        environment = {**os.environ, **ENVIRONMENT}
        subprocess.run(
            [*command, *options, *memory], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=300
        )

    def kill(self) -> None:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            pid = int(place.parent.name)
            try:
                ours = str(self._folder).encode() in place.read_bytes() and pid != os.getpid()
            except OSError:
                continue
            if ours:
                os.kill(pid, signal.SIGKILL)


def measure(run: Run) -> Rows:
    """Encode with Ray actors; kill an actor, and a head."""
    if importlib.util.find_spec("ray") is None:
        sys.stderr.write("left out: Ray is not installed\n")
        return
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        folder, port = Path(name), free_port()
        executor = {"executor": "ray", "ray_address": f"127.0.0.1:{port}"}
        head = Head(folder / "a", port)
        try:
            yield from measure_pools(run, folder, executor, ENVIRONMENT)
            pair = TwoNodes.create(folder / "nodes", "satellite", "relief", settings={"threads": 1})
            for node in pair.both:
                node.environment.update(ENVIRONMENT)
            pair.source.configure({**executor, "workers": 2})
            with pair, pair.client() as client:
                request = Request(Settings(evaluations=run.pick(smoke=8, long=48)))
                files = png_files(run, run.pick(smoke=8, long=128))
                started = time.perf_counter()
                job = client.submit(files, pair.to, request).job_id
                while done(client, job) < len(files) // 8:
                    time.sleep(0.1)
                head.kill()
                yield figure("pictures done when the head was killed", [done(client, job)], "")
                time.sleep(run.pick(smoke=1, long=45))  # longer than it takes a node to notice
                head = Head(folder / "b", port)
                results = [result.item for result in client.results(job)]
                yield figure("the job, with all that", [time.perf_counter() - started])
        finally:
            head.kill()
    lost, twice = len(files) - len(set(results)), len(results) - len(set(results))
    yield bound(run, "pictures lost by SIGKILL of the head", [lost], at_most=0, always=True)
    yield bound(run, "pictures delivered twice", [twice], at_most=0, always=True)


def done(client: Client, job: str) -> int:
    return sum(item.state.name in {"DECODED", "DELIVERED"} for item in client.get(job).items)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/ray"))
