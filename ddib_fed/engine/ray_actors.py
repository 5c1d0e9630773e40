"""Ray actors as workers of a pool, on a cluster of the institution's own; Ray restarts and retries what dies.

Ray ends a driver that does not reach the cluster's head, and its gRPC reads the environment that a node sets for its
own. So the driver is a process beside the node: the pool finds its workers lost, and starts another driver.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from typing import Any, Final

from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.executors import (
    LOOK_S,
    Answer,
    Bench,
    Pool,
    Steps,
    WorkerLost,
    end_with_parent,
    pack,
    unpack,
)
from ddib_fed.errors import ConfigError, NotReady, missing
from ddib_fed.version import __version__

LOCAL: Final = "local"
"""Instead of a cluster's address: one of this machine alone."""
DIAL_S: Final = 3.0
READY_S: Final = 300.0
"""For the first actor: a cluster may have to start a machine for it."""
RETRIES: Final = 1
"""By Ray, of a batch during which an actor died."""
LOST_AFTER_S: Final = 10
LOCAL_STORE_BYTES: Final = 512 << 20
ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(LOST_AFTER_S),  # how long the head may not answer
}
NOT_FOR_RAY: Final = "GRPC_SSL_CIPHER_SUITES"
"""Set by `trust.tls` for the gRPC of a node, which is another than Ray's."""


def ray_pool(recipe: Recipe, *, address: str, workers: int = 0, local_cpus: int = 1) -> Pool:
    """A pool of actors, at least one of them ready; 0 for one on each GPU, or each core, of the cluster."""
    if importlib.util.find_spec("ray") is None:
        raise missing(
            "ray",
            "ray",
            "the executor ray needs Ray",
            otherwise='executor = "processes" in [engine] of node.toml',
        )
    # The file that remembers costs is on the node's machine: an actor measures for itself.
    packed = pack(replace(recipe, threads=recipe.threads or 1, costs=None))
    drivers = _Drivers(packed, recipe.device, address, max(workers, local_cpus))
    try:
        places = drivers.connected().places()
        return Pool(
            lambda number: ActorWorker(drivers, number),
            workers or max(1, places),
            what="Ray actor",
            remedy="the local Ray cluster" if address == LOCAL else f"ray status --address {address}",
            least=1,
            ready_s=READY_S,
            end=drivers.close,
        )
    except BaseException:
        drivers.close()
        raise


class Actor(Bench):
    """A worker on a cluster: Ray makes it from this class, and again when it died."""

    def __init__(self, recipe: bytes, device: str, version: str) -> None:
        if version != __version__:
            raise ConfigError(
                f"the cluster has ddib-fed {__version__}, and the node {version}",
                hint=f"install ddib-fed {version} with its extras node and ray in the image of the cluster",
            )
        super().__init__(replace(unpack(recipe), device=device))
        self._name = f"{device} of {socket.gethostname()}, process {os.getpid()}"

    def describe(self) -> tuple[str, int]:
        return self._name, self.rows


class Driver:
    """In a process of its own: a connection to a cluster, its actors, and the batch that each has."""

    def __init__(self, recipe: bytes, device: str, address: str, cpus: int) -> None:
        self._given = recipe, device, address, cpus
        self._actors: dict[int, Any] = {}
        self._batches: dict[int, Any] = {}

    def connect(self) -> None:
        """Attach to the cluster, or start one of this machine."""
        os.environ.update(ENVIRONMENT)
        os.environ.pop(NOT_FOR_RAY, None)
        import ray

        self._ray = ray
        recipe, _, address, cpus = self._given
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == LOCAL:
            options |= {
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": LOCAL_STORE_BYTES,
            }
        else:
            options["namespace"] = "ddib-fed"
        try:
            if address != LOCAL:
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), DIAL_S).close()
            ray.init(address=address, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise NotReady(
                f"the Ray cluster at {address} cannot be joined: {_first_line(error)}",
                hint=f"on this machine: ray status --address {address}; it must be part of the cluster: "
                f"ray start --address {address} --num-cpus 0",
                retry_after_s=LOST_AFTER_S,
            ) from None
        self._recipe = ray.put(recipe)
        self._class = ray.remote(concurrency_groups={"looks": 1})(Actor)

    def places(self) -> int:
        found = self._ray.cluster_resources()
        return int(found.get("GPU", 0) or found.get("CPU", 0))

    def start(self, number: int) -> tuple[str, int]:
        """Start an actor on a GPU where there are any, else on a core; where it is, and its rows, once it is ready."""
        device = self._given[1]
        on_gpu = device.startswith("cuda") or (device == "auto" and self._ray.cluster_resources().get("GPU"))
        actor = self._class.options(
            num_cpus=0 if on_gpu else 1,
            num_gpus=1 if on_gpu else 0,
            max_restarts=-1,
            max_task_retries=RETRIES,
            scheduling_strategy="SPREAD",
        ).remote(self._recipe, "cuda" if on_gpu else "cpu", __version__)
        self._actors[number] = actor
        try:
            found: tuple[str, int] = self._ray.get(actor.describe.remote())
        except self._ray.exceptions.RayError as error:
            raise NotReady(
                f"it ended: {str(error).strip().rpartition(chr(10))[2]}", retry_after_s=5.0
            ) from None
        return found

    def begin(self, number: int, batch: bytes) -> None:
        self._batches[number] = self._actors[number].run.remote(batch)

    def look(self, number: int, over: Sequence[int]) -> bytes | Steps:
        """The answer of its batch if it comes within `LOOK_S`; else cancel these places, and tell the others' steps."""
        batch, errors = self._batches[number], self._ray.exceptions
        try:
            if self._ray.wait([batch], timeout=LOOK_S)[0]:
                answer: bytes = self._ray.get(batch)
                return answer
        except errors.RayActorError as error:
            raise WorkerLost(f"ended: {_first_line(error)}") from None
        actor = self._actors[number]
        with contextlib.suppress(
            errors.RayActorError, errors.GetTimeoutError
        ):  # it is being started again, say
            looks = actor.look.options(concurrency_group="looks").remote(over)
            steps: Steps = self._ray.get(looks, timeout=LOOK_S)
            return steps
        return {}

    def end(self, number: int) -> None:
        actor = self._actors.pop(number, None)
        if actor is not None:
            self._ray.kill(actor)


class _Manager(BaseManager):
    """The driver's process."""


_Manager.register("Driver", Driver, exposed=("connect", "places", "start", "begin", "look", "end"))


class _Drivers:
    """The driver, started again when its process has ended."""

    def __init__(self, *given: Any) -> None:
        self._given = given
        self._lock = threading.Lock()
        self._manager: _Manager | None = None
        self._driver: Any = None

    def connected(self) -> Any:
        with self._lock:
            if self._driver is None:
                self._manager = _Manager(ctx=get_context("spawn"))
                self._manager.start(end_with_parent)
                try:
                    driver = self._manager.Driver(*self._given)  # type: ignore[attr-defined]
                    driver.connect()
                except BaseException:
                    self._stop()
                    raise
                self._driver = driver
            return self._driver

    @contextlib.contextmanager
    def calling(self, driver: Any) -> Iterator[None]:
        """Call a driver; one that has ended is replaced for who comes next."""
        try:
            yield
        except (EOFError, OSError) as error:
            with self._lock:
                if self._driver is driver:
                    self._stop()
            raise WorkerLost("was lost with the driver of the cluster", blame=False) from error

    def close(self) -> None:
        """End the driver, and with it its actors."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._manager is not None:
            self._manager.shutdown()
        self._manager = self._driver = None


class ActorWorker:
    """A `Worker`: an actor, through the driver."""

    def __init__(self, drivers: _Drivers, number: int) -> None:
        self._drivers, self._driver, self._number = drivers, drivers.connected(), number
        self.name, self.rows = str(number), 1

    def ready(self) -> None:
        with self._drivers.calling(self._driver):
            where, self.rows = self._driver.start(self._number)
        self.name = f"{self._number} on {where}"

    def begin(self, batch: bytes) -> None:
        with self._drivers.calling(self._driver):
            self._driver.begin(self._number, batch)

    def look(self, over: Sequence[int]) -> Steps | Answer:
        with self._drivers.calling(self._driver):
            found: bytes | Steps = self._driver.look(self._number, over)
        if not isinstance(found, bytes):
            return found
        answer: Answer = unpack(found)
        return answer

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # the driver has ended, and the actor with it
            self._driver.end(self._number)

    def close(self) -> None:
        self.kill()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
