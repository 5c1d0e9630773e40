"""A pool of Ray actors on a cluster of the institution's own, through a driver in a process of its own."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import threading
from typing import Any, Final

from ddib_fed.bridge.engine.warm import Recipe
from ddib_fed.bridge.workers.limits import LOCAL
from ddib_fed.bridge.workers.pool import Listener, Pool
from ddib_fed.bridge.workers.process import Outbox, WorkerProcess
from ddib_fed.bridge.workers.ray_driver import (
    ActorEnded,
    Connected,
    EndActor,
    Lost,
    Said,
    StartActor,
    ToActor,
    serve,
)
from ddib_fed.errors import NotReady
from ddib_fed.extras import missing

log = logging.getLogger(__name__)

WHAT: Final = "Ray actor"
CONNECT_S: Final = 90.0
READY_S: Final = 300.0
"""For the first actor: a cluster may have to start a machine for it."""


def ray_pool(recipe: Recipe, *, address: str, workers: int = 0, local_cpus: int = 1) -> Pool:
    """A pool of actors, at least one of them ready."""
    if importlib.util.find_spec("ray") is None:
        raise missing(
            "ray",
            "ray",
            "the executor ray needs Ray",
            otherwise='executor = "processes" in [engine] of node.toml',
        )
    cluster = Cluster(recipe, address, max(workers, local_cpus))
    where = "the local Ray cluster" if address == LOCAL else f"ray status --address {address}"
    try:
        there = cluster.connect()
        return ClusterPool(cluster, workers or max(1, there.gpus or there.cpus), remedy=where)
    except BaseException:
        cluster.close()
        raise


class ClusterPool(Pool):
    """A pool that closes its cluster's driver with it."""

    def __init__(self, cluster: Cluster, count: int, *, remedy: str) -> None:
        self._cluster = cluster
        super().__init__(cluster, count, what=WHAT, remedy=remedy, ready_s=READY_S, wait_for=1)

    def close(self) -> None:
        super().close()
        self._cluster.close()


class Cluster:
    """Starts actors, through a driver that is started again when it ends."""

    def __init__(self, recipe: Recipe, address: str, cpus: int) -> None:
        self._given = recipe, address, cpus
        self._address = address
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._driver: _Driver | None = None

    def connect(self) -> Connected:
        return self._connected().there

    def __call__(self, listener: Listener) -> _Actor:
        return self._connected().start(next(self._numbers), listener)

    def close(self) -> None:
        """End the driver, and with it its actors."""
        with self._lock:
            if self._driver is not None:
                self._driver.end()

    def _connected(self) -> _Driver:
        with self._lock:
            if self._driver is None or self._driver.lost:
                if self._driver is not None:
                    self._driver.end()
                self._driver = None
                self._driver = _Driver(*self._given)
            return self._driver


class _Driver:
    """The driver's process, as the node sees it."""

    def __init__(self, recipe: Recipe, address: str, cpus: int) -> None:
        self._process = WorkerProcess(serve, name="ddib ray driver")
        self._lock = threading.Lock()
        self._listeners: dict[int, Listener] = {}
        self._connected = threading.Event()
        self._there: Connected | None = None
        self._error: Exception | None = None
        self.lost = False
        self._outbox = Outbox(self._process, name="ray-driver")
        self._outbox.put((recipe, address, cpus))
        threading.Thread(target=self._listen, name="ray-driver", daemon=True).start()
        answered = self._connected.wait(CONNECT_S)
        if self._there is None:
            self._process.kill()
            raise self._error or NotReady(
                f"the Ray cluster at {address} cannot be joined: no answer within {CONNECT_S:.0f} s"
                if not answered
                else f"the driver of the Ray cluster at {address} {self._process.ending}",
                hint=f"ray status --address {address}",
                retry_after_s=10.0,
            )

    @property
    def there(self) -> Connected:
        assert self._there is not None
        return self._there

    def start(self, number: int, listener: Listener) -> _Actor:
        """Start an actor."""
        with self._lock:
            self._listeners[number] = listener
            lost = self.lost
        if lost:
            listener.ended("was not started: the driver has ended", blame=False)
        self.send(StartActor(number))
        return _Actor(self, number)

    def send(self, message: Any) -> None:
        self._outbox.put(message)

    def end(self) -> None:
        """End it; its actors end with it."""
        self.lost = True
        self._outbox.close()
        self._process.end()

    def _listen(self) -> None:
        try:
            while True:
                self._heard(self._process.channel.receive())
        except (EOFError, OSError):
            pass
        except Exception:
            log.exception("a message of the driver could not be taken; it is replaced")
        with self._lock:
            self.lost = True
            listeners = list(self._listeners.values())
            self._listeners.clear()
        self._outbox.close()
        self._process.channel.close()
        self._connected.set()
        self._process.kill()
        why = f"was lost: {self._error or 'the driver ' + self._process.ending}"
        for listener in listeners:
            listener.ended(why, blame=False)

    def _heard(self, message: Any) -> None:
        if isinstance(message, Connected):
            self._there = message
            self._connected.set()
        elif isinstance(message, Lost):
            self._error = message.error
        elif isinstance(message, Said):
            listener = self._listeners.get(message.number)
            if listener is not None:
                listener.heard(message.message)
        elif isinstance(message, ActorEnded):
            with self._lock:
                listener = self._listeners.pop(message.number, None)
            if listener is not None:
                listener.ended(message.why, blame=message.blame)


class _Actor:
    """A `Remote`."""

    def __init__(self, driver: _Driver, number: int) -> None:
        self._driver, self._number = driver, number

    def send(self, message: Any) -> None:
        self._driver.send(ToActor(self._number, message))

    def end(self) -> None:
        self._driver.send(EndActor(self._number))
