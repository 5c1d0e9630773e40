"""A process that starts workers and then waits to be killed; each worker holds a connection to the test while it lives."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from ddib_fed.bridge.workers.process import WorkerProcess
from ddib_fed.processes import PR_SET_PDEATHSIG

ROOT = Path(__file__).parents[3]
PATIENCE_S = 90.0
"""To start, on a busy machine."""
SOON_S = 30.0
"""To end; on an idle machine it takes milliseconds."""


def children() -> list[int]:
    with subprocess.Popen(["pgrep", "-P", str(os.getpid())], stdout=subprocess.PIPE, text=True) as search:
        found = [int(line) for line in search.communicate()[0].split()]
    return [process for process in found if process != search.pid]


def tell(address: str) -> socket.socket:
    """Connect to the test; what is connected to it lives."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(address)
    line.sendall(str(os.getpid()).encode())
    return line


def hold(channel, address, *, unwarned=False):
    """A worker that computes for ever and never looks at its channel."""
    if unwarned and sys.platform == "linux":  # the portable way has to do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    line = tell(address)
    while line:
        sum(range(1000))


@contextlib.contextmanager
def abandoned(kind: str, folder: Path, workers: int):
    """Lines to the workers of a process that was killed with SIGKILL when all of them lived."""
    address = str(folder / "alive")
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as lines:
        server.bind(address)
        server.listen()
        server.settimeout(PATIENCE_S)
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.bridge.workers.orphans", address, kind], cwd=ROOT
        )
        try:
            there = [lines.enter_context(server.accept()[0]) for _ in range(workers)]
            processes = [int(line.recv(20)) for line in there]
        finally:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        assert parent.pid not in processes
        yield there


def all_ended(lines) -> bool:
    """Whether the workers at the other ends of the lines end soon."""
    for line in lines:
        line.settimeout(SOON_S)
        try:
            if line.recv(1):
                return False
        except TimeoutError:
            return False
    return True


def main(address: str, kind: str) -> None:
    from tests.bridge.workers.orphans import hold  # by a name that workers can import, which __main__ is not

    worker = WorkerProcess(functools.partial(hold, unwarned=kind == "unwarned"), (address,), name="held")
    worker.channel.receive()


if __name__ == "__main__":
    main(*sys.argv[1:])
