"""A node under attack: its memory, and how long Health takes, all the while."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddib_fed.security import tls
from tests.e2e.harness import Node

MB = 1e6
PAUSE_S, LONGEST_S = 0.05, 60.0


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def cpu_s(node: Node) -> float:
    assert node.process is not None
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _channel(node: Node) -> grpc.Channel:
    address, name = f"127.0.0.1:{node.port}", f"node-1.{node.institution}"
    return tls.channel(address, server_name=name, pki_folder=node.config.paths.pki)


def _serves(channel: grpc.Channel) -> bool:
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def healthy(node: Node) -> bool:
    with _channel(node) as channel:
        return _serves(channel)


class Watch:
    """While it is entered, asks Health, over new connections and over one that stays, and looks at the node's
    process.
    """

    def __init__(self, node: Node) -> None:
        assert node.process is not None
        self._node, self._pid = node, node.process.pid
        self.grown_mb, self.files, self.threads_more, self.worst_s, self.asked = 0.0, 0, 0, 0.0, 0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._ask, self._ask_again, self._look)
        ]

    def __enter__(self) -> Self:
        assert healthy(self._node)
        self._before, self._threads_before = resident(self._pid), self._count("task")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def seen(self) -> str:
        """What was seen, in words."""
        return (
            f"Health at most {self.worst_s:.2f} s, +{self.grown_mb:.0f} MB, {self.files} files, "
            f"+{self.threads_more} threads"
        )

    def _ask(self) -> None:
        self._time(lambda: healthy(self._node))

    def _ask_again(self) -> None:
        with _channel(self._node) as channel:
            self._time(lambda: _serves(channel))

    def _time(self, answers: Callable[[], bool]) -> None:
        while not self._over.wait(PAUSE_S):
            started, well = time.monotonic(), False
            while not well and time.monotonic() - started < LONGEST_S:
                well = answers()
                self.asked += 1
            self.worst_s = max(self.worst_s, time.monotonic() - started)

    def _count(self, what: str) -> int:
        return len(list(Path(f"/proc/{self._pid}/{what}").iterdir()))

    def _look(self) -> None:
        while not self._over.wait(PAUSE_S):
            self.grown_mb = max(self.grown_mb, (resident(self._pid) - self._before) / MB)
            self.files = max(self.files, self._count("fd"))
            self.threads_more = max(self.threads_more, self._count("task") - self._threads_before)
