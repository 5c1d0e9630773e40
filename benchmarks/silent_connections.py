"""How long a node is gone when strangers connect to it and say nothing.

    python -m benchmarks.silent_connections [--connections 1100] [--files 1024] [--say hello]

Starts a target on loopback with so many open files, opens so many connections from one address, and asks Health (over
mutual TLS) and the operator's socket (as `ddib status` does) over and over for 5 s, or for as long as they fail. Prints
the seconds until the last of their failures was over; 0 is no failure at all.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.admission.test_strangers import healthy
from tests.e2e.harness import Node

# The first five bytes of a TLS record that is never finished.
HALF_A_GREETING = b"\x16\x03\x01\x02\x00"
WATCHED_S, LONGEST_S = 5.0, 180.0


def last_failures(node: Node) -> dict[str, float]:
    """Seconds until the last failure of each of the two was over, asked side by side."""
    started, found = time.monotonic(), {}

    def ask(what: str, answers: Callable[[], bool]) -> None:
        pause, well, now = threading.Event(), True, 0.0
        found[what] = 0.0
        while now < WATCHED_S or (not well and now < LONGEST_S):
            well, now = answers(), time.monotonic() - started
            if not well:
                found[what] = round(now, 2)
            pause.wait(0.05)

    asking = {"health": lambda: healthy(node), "status": lambda: node.state() == "serving"}
    threads = [threading.Thread(target=ask, args=entry) for entry in asking.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=1_100)
    parser.add_argument("--files", type=int, default=1_024)
    parser.add_argument("--say", choices=["nothing", "hello"], default="nothing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddib-silent-") as folder, ExitStack() as ends:
        node = Node.create(Path(folder) / "south", "target", "south.example", "checkerboards")
        node.open_files = asked.files
        ends.callback(node.stop)
        node.start()
        for _ in range(asked.connections):
            end = ends.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=10))
            if asked.say == "hello":
                end.sendall(HALF_A_GREETING)
        found = {"connections": asked.connections, "files": asked.files, "say": asked.say}
        sys.stdout.write(json.dumps(found | {"gone_s": last_failures(node)}) + "\n")


if __name__ == "__main__":
    main()
