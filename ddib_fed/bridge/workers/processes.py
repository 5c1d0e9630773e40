"""A pool of spawned processes: one for each GPU or core of this machine, each with the model on its device."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from dataclasses import replace
from typing import Any, Final

from ddib_fed.bridge.engine.warm import Recipe
from ddib_fed.bridge.workers.pool import Listener, Pool
from ddib_fed.bridge.workers.process import Channel, Outbox, WorkerProcess, portable
from ddib_fed.bridge.workers.workbench import Broken, Workbench

log = logging.getLogger(__name__)

WHAT: Final = "worker process"
REMEDY: Final = "the node's log has what the process said; free -h and nvidia-smi show what memory is left"


def worker_devices(device: str) -> tuple[str, ...]:
    """The devices of this machine that workers are shared among."""
    import torch  # not above: a worker's process imports this module before it is asked for anything

    gpus = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if device in {"auto", "cuda"} and gpus:
        return gpus
    return ("cpu",) * _cores() if device in {"auto", "cpu"} else (device,)


def process_pool(recipe: Recipe, *, workers: int = 0) -> Pool:
    """A pool of processes, all ready."""
    devices = worker_devices(recipe.device)
    numbers = itertools.count()

    def launch(listener: Listener) -> _Process:
        number = next(numbers)
        device = devices[number % len(devices)]
        return _Process(
            replace(recipe, device=device, threads=recipe.threads or 1), f"{number} on {device}", listener
        )

    return Pool(launch, workers or len(devices), what=WHAT, remedy=REMEDY)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Process:
    """A `Remote`: a process, its outbox and a thread that listens."""

    def __init__(self, recipe: Recipe, name: str, listener: Listener) -> None:
        self._process = WorkerProcess(serve, name=f"ddib worker {name}")
        self._listener = listener
        self._outbox = Outbox(self._process, name=f"worker {name}")
        self._outbox.put((recipe, f"{name}, process {self._process.pid}"))
        threading.Thread(target=self._listen, name=f"worker {name}", daemon=True).start()

    def send(self, message: Any) -> None:
        self._outbox.put(message)

    def end(self) -> None:
        self._outbox.close()
        self._process.end()

    def _listen(self) -> None:
        try:
            while True:
                self._listener.heard(self._process.channel.receive())
        except (EOFError, OSError):
            self._outbox.close()
            self._process.channel.close()
        except Exception:
            log.exception("a message of a worker process could not be taken; it is replaced")
            self._outbox.close()
            self._process.kill()
        why = self._process.ending
        self._process.kill()
        self._listener.ended(why, blame=True)


def serve(channel: Channel) -> None:
    """In the process: do what comes through the channel until it is closed."""
    recipe, name = channel.receive()
    try:
        bench = Workbench(recipe, name, channel.send)
    except Exception as error:  # noqa: BLE001 - the pool tells it
        channel.send(Broken(portable(error)))
        return
    while True:
        bench.take(channel.receive())
