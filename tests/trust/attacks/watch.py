"""A node under attack: its memory, and how long Health takes, all the while."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddib_fed.trust import tls
from tests.e2e.harness import Node

MB = 1e6
PAUSE_S, LONGEST_S = 0.05, 60.0


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def healthy(node: Node) -> bool:
    """Whether Health answers a caller of the institution over mutual TLS, on a connection of its own."""
    address, name = f"127.0.0.1:{node.port}", f"node-1.{node.institution}"
    with tls.channel(address, server_name=name, pki_folder=node.config.paths.pki) as channel:
        request = health_pb2.HealthCheckRequest()
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Watch:
    """While it is entered, asks Health over new connections and looks at the node's memory.

    Attributes:
        grown_mb: How much more memory the node held at its most than before.
        worst_s: The longest from asking Health to an answer; after a failure it is asked again until there is one.
        asked: How often Health was asked.
    """

    def __init__(self, node: Node) -> None:
        assert node.process is not None
        self._node, self._pid = node, node.process.pid
        self.grown_mb, self.worst_s, self.asked = 0.0, 0.0, 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._ask, self._look)]

    def __enter__(self) -> Self:
        assert healthy(self._node)
        self._before = resident(self._pid)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.wait(PAUSE_S):
            started, well = time.monotonic(), False
            while not well and time.monotonic() - started < LONGEST_S:
                well = healthy(self._node)
                self.asked += 1
            self.worst_s = max(self.worst_s, time.monotonic() - started)

    def _look(self) -> None:
        while not self._over.wait(PAUSE_S):
            self.grown_mb = max(self.grown_mb, (resident(self._pid) - self._before) / MB)
