"""How long a client's job takes while a colleague has many jobs for a peer that does not answer.

    python -m benchmarks.trust.crowd [--jobs 64]

Two nodes on loopback with the shipped points models, and a third institution, admitted, whose address takes connections
and says nothing. Alice submits so many jobs for it, sixteen at a time; then Bob, and Alice herself, have 50 points
translated by the peer that answers. Prints a line of JSON: how many jobs were accepted and why others were not, seconds
of the two jobs (or the reason), and how many of Alice's are running.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.speed.shared.two_nodes import npy_file
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DdibError
from ddib_fed.wire.jobs import Settings
from tests.e2e.harness import Node, Pair, admit, ddib, moons

POINTS = 50
AT_ONCE = 16


def submit_absent(profile: Path, _: int) -> str:
    """One job for the peer that does not answer; "accepted", or why it was not."""
    with Client(Profile.load(profile), busy_s=0.0) as client:
        try:
            client.submit([npy_file(moons(POINTS))], "gone.example/moons", Settings())
        except DdibError as error:
            return error.reason
    return "accepted"


def served(profile: Path) -> float | str:
    """Seconds of a job for the peer that answers; the reason where it is refused or takes more than two minutes."""
    with Client(Profile.load(profile), busy_s=0.0) as client:
        started = time.perf_counter()
        try:
            job = client.submit(
                [npy_file(moons(POINTS))], "south.example/checkerboards", Settings(), deadline_s=120
            )
            list(client.results(job.job_id))
            client.require_finished(job.job_id)
        except DdibError as error:
            return error.reason
        return round(time.perf_counter() - started, 2)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddib-crowd-") as folder, ExitStack() as ends:
        root = Path(folder)
        pair = Pair.create(root)
        gone = Node.create(root / "gone", "target", "gone.example", "moons", pretrained=False)
        hole = ends.enter_context(socket.create_server(("127.0.0.1", gone.port)))
        assert hole.fileno() >= 0
        admit(pair.north, gone)
        bob = root / "bob" / "client.toml"
        ddib("init", "client", "--node-config", pair.north.config_path, "--name", "bob", "--out", bob.parent)
        ends.callback(pair.stop)
        pair.start()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            said = Counter(pool.map(lambda n: submit_absent(pair.profile, n), range(asked.jobs)))
        seconds = {"bob_s": served(bob), "alice_s": served(pair.profile)}
        with pair.client() as client:
            states = Counter(str(job.state) for job in client.list() if job.target.startswith("gone."))
        sys.stdout.write(json.dumps({"submitted": said, **seconds, "for_the_absent": states}) + "\n")


if __name__ == "__main__":
    main()
