"""A wire that delays, cuts, swallows, slows down or damages what passes, in either direction."""

from __future__ import annotations

import socket
import threading
from typing import Literal

from tests.node.flipping import BitFlipper, Direction

Fault = Literal["delay", "swallow", "cut", "slow", "flip"]
DELAY_S = 0.3
SLOW_S = 1.0
"""Seconds for one byte."""
FAULTS: tuple[Fault, ...] = ("delay", "swallow", "cut", "slow", "flip")
QUICK: tuple[Fault, ...] = ("delay", "cut", "slow", "flip")
"""Those that are noticed at once; what was swallowed is missed when a connection next says something."""


class FaultyWire(BitFlipper):
    """Relays as a `BitFlipper` does, under the fault that a test sets and lifts while connections live."""

    def __init__(self, upstream: int) -> None:
        self._fault: tuple[Fault, Direction] | None = None
        self._well = threading.Event()
        self.met = 0
        """Pieces of data that met a fault."""
        super().__init__(upstream)

    def begin(self, fault: Fault, direction: Direction) -> None:
        self._well.clear()
        self._fault = (fault, direction)

    def end(self) -> None:
        self._fault = None
        self._well.set()

    def _pass(self, data: bytearray, sink: socket.socket, direction: Direction) -> None:
        fault = self._fault
        if fault is None or fault[1] != direction:
            sink.sendall(data)
            return
        self.met += 1
        match fault[0]:
            case "delay":
                self._well.wait(DELAY_S)
                sink.sendall(data)
            case "swallow":
                return
            case "cut":
                raise ConnectionAbortedError
            case "slow":
                left = memoryview(data)
                while left and not self._well.wait(SLOW_S):
                    sink.sendall(left[:1])
                    left = left[1:]
                sink.sendall(left)
            case "flip":
                data[-1] ^= 1
                sink.sendall(data)
