"""The work of two nodes without them: two pinned processes with both models, by `Model.encode` and `Model.decode`."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.shared.nodes import EVALUATIONS, two_cores
from ddib_fed import Model, Settings

Array = NDArray[np.float32]
LEVEL = 0.0  # log(alpha / sigma) at which the network is called alone


class Alone:
    """Two processes that each translate half of the samples: the best setting without nodes."""

    def __init__(self, source: str, target: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection[Any, Any]] = []
        self._processes = []
        for core in two_cores():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, source, target, core), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()  # the imports are done

    def translate(self, samples: Array, together: int, evaluations: int = EVALUATIONS) -> float:
        """Return the seconds until both halves are translated, so many samples in a network call."""
        started = time.perf_counter()
        for pipe, half in zip(self._pipes, np.array_split(samples, 2), strict=True):
            pipe.send(("translate", together, half, evaluations))
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - started

    def stop_and_wait(self, samples: Array, together: int, evaluations: int = EVALUATIONS) -> float:
        """Return the seconds when one process encodes a batch, the other decodes it, and only then the next begins."""
        started = time.perf_counter()
        encoding, decoding = self._pipes
        for start in range(0, len(samples), together):
            encoding.send(("encode", together, samples[start : start + together], evaluations))
            decoding.send(("decode", together, encoding.recv(), evaluations))
            decoding.recv()
        return time.perf_counter() - started

    def calls(self, samples: Array, together: int, evaluations: int) -> list[float]:
        """Return the CPU seconds of the network calls of encoding and of decoding, without solver or gate."""
        self._pipes[0].send(("calls", together, samples, evaluations))
        seconds: list[float] = self._pipes[0].recv()
        return seconds

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


def _serve(pipe: Connection[Any, Any], source: str, target: str, core: int) -> None:
    os.sched_setaffinity(0, {core})

    @cache
    def models(together: int) -> list[Model]:
        return [Model.open(name, threads=1, batch=together) for name in (source, target)]

    def encode(together: int, samples: Array, evaluations: int) -> Array:
        return models(together)[0].encode(samples, Settings(evaluations=evaluations))

    def decode(together: int, latents: Array, evaluations: int) -> Array:
        return models(together)[1].decode(latents, Settings(evaluations=evaluations))

    def translate(together: int, samples: Array, evaluations: int) -> int:
        return len(decode(together, encode(together, samples, evaluations), evaluations))

    def calls(together: int, samples: Array, evaluations: int) -> list[float]:
        seconds = []
        for model in models(together):
            started = time.process_time()
            for _ in range(evaluations):
                model.velocity(samples, LEVEL)
            seconds.append(time.process_time() - started)
        return seconds

    works: dict[str, Callable[..., Any]] = {
        "translate": translate, "encode": encode, "decode": decode, "calls": calls
    }  # fmt: skip
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        name, *arguments = work
        pipe.send(works[name](*arguments))
