"""`executor = "ray"`: two actors beside one, an actor that is killed, and a head that is killed under a node's job.

python -m benchmarks.speed.ray [--short]

The head is a cluster of this machine; what is killed is everything of it: GCS, raylet, actors, with SIGKILL. A second
one is started at the same address. The job is the source node's of `benchmarks.speed.shared.two_nodes`; its target
computes in its own process.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.speed.shared.harness import ROOT, SKIPPED, Form, Report, main
from benchmarks.speed.shared.pools import DOMAIN, MOST_LOST, TOGETHER, measure_pools, recipe
from benchmarks.speed.shared.two_nodes import EVALUATIONS, png_files
from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.engine.executors import ray_pool
from ddib_fed.record import Settings
from ddib_fed.testing import TwoNodes, free_port

DONE = {"DECODED", "DELIVERED"}
ENVIRONMENT = {
    **os.environ,
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
        subprocess.run(
            [*command, *options, *memory], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL, timeout=300
        )

    def kill(self) -> None:
        for pid in self._processes():
            os.kill(pid, signal.SIGKILL)

    def _processes(self) -> list[int]:
        found = []
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = place.read_bytes()
            except OSError:
                continue
            if str(self._folder).encode() in words and int(place.parent.name) != os.getpid():
                found.append(int(place.parent.name))
        return found


def measure(form: Form) -> Report:
    """Decode pictures with Ray actors; kill an actor, and a head."""
    report = Report(
        f"Decoding pictures of 32 px with the shipped {DOMAIN}, 48 evaluations, in trajectories of {TOGETHER}, one "
        "thread an actor, on a local Ray cluster; then a job of a source node whose cluster's head is killed."
    )
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        port = free_port()
        address = f"127.0.0.1:{port}"
        head = Head(Path(folder) / "a", port)
        try:
            measure_pools(
                form,
                report,
                "actor",
                "actors",
                lambda workers: ray_pool(recipe(), address=address, workers=workers),
            )
            head = _killed_head(form, report, Path(folder), head, port)
        finally:
            head.kill()
    return report


def _killed_head(form: Form, report: Report, folder: Path, head: Head, port: int) -> Head:
    """A job through two nodes, the head killed when the first items are there; the head that is there then."""
    files, _ = png_files(form.pick(48, 128))
    with ExitStack() as after:
        pair = TwoNodes.create(folder / "nodes", "satellite", "relief", settings={"threads": 1})
        for node in pair.both:
            node.environment.update(ENVIRONMENT)
        pair.source.configure({"executor": "ray", "ray_address": f"127.0.0.1:{port}", "workers": 2})
        after.enter_context(pair)
        client = after.enter_context(pair.client())
        started = time.perf_counter()
        job = client.submit(files, "south.example/relief", Request(Settings(evaluations=EVALUATIONS))).job_id
        while _done(client, job) < form.pick(4, 16):
            time.sleep(0.1)
        head.kill()
        report.add("pictures done when the head was killed", [_done(client, job)], "")
        away = time.perf_counter()
        time.sleep(form.pick(15, 45))  # longer than it takes a node to notice
        print(f"the node says: {pair.source.state()}")
        again = Head(folder / "b", port)
        report.add("seconds without a head", [time.perf_counter() - away], "s")
        for _ in client.watch(job):
            pass
        results = [result.item for result in client.fetch(job)]
        report.add("the job, with all that", [time.perf_counter() - started], "s")
        report.bound(
            "pictures lost by SIGKILL of the head", [len(files) - len(set(results))], at_most=MOST_LOST
        )
        report.bound("pictures delivered twice", [len(results) - len(set(results))], at_most=MOST_LOST)
    return again


def _done(client: Client, job: str) -> int:
    return sum(item.state in DONE for item in client.get(job).items)


if __name__ == "__main__":
    if importlib.util.find_spec("ray") is None:
        print("left out: Ray is not installed (make test-ray installs it)")
        raise SystemExit(SKIPPED)
    raise SystemExit(main("ray", measure))
