"""Ray actors as workers of a pool, on a cluster of the institution's own.

Ray ends a process that does not reach the cluster's head, and its gRPC reads the environment that a node sets for its
own. So a process beside the node joins the cluster for each actor, and passes on what the pool and the actor say.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Final

from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.executors import (
    LOOK_S,
    Pool,
    Say,
    WarmModel,
    Worker,
    pack,
    packed_end,
    portable,
    serve,
    start_process,
    unpack,
)
from ddib_fed.errors import ConfigError, InternalError, NotReady, missing
from ddib_fed.version import __version__

LOCAL: Final = "local"
"""Instead of a cluster's address: one of this machine alone."""
DIAL_S: Final = 3.0
READY_S: Final = 300.0
"""For the first actor: a cluster may have to start a machine for it."""
LOST_AFTER_S: Final = 10
LOCAL_STORE_BYTES: Final = 512 << 20
TOGETHER: Final = 256
"""Trajectories that an actor may have at once."""
ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(LOST_AFTER_S),  # how long the head may not answer
}
NOT_FOR_RAY: Final = "GRPC_SSL_CIPHER_SUITES"
"""Set by `security.tls` for the gRPC of a node, which is another than Ray's."""


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
    cluster, leave = start_process(_join, address, max(workers, local_cpus))
    try:
        joined, places = _joined(cluster)
        return Pool(
            lambda _: Worker(*start_process(_serve_actor, packed, recipe.device, joined)),
            workers or max(1, places),
            what="Ray actor",
            remedy="the local Ray cluster" if address == LOCAL else f"ray status --address {address}",
            least=1,
            ready_s=READY_S,
            blames=False,  # Ray ends the process of an actor when it loses the cluster
            end=leave,
        )
    except BaseException:
        leave()
        raise


def _joined(cluster: Connection) -> tuple[str, int]:
    try:
        kind, *what = cluster.recv()
    except EOFError as error:
        raise InternalError("the process that joins the Ray cluster ended") from error
    if kind == "refused":
        raise what[0]
    return what[0], what[1]


def _ray(address: str, cpus: int = 0) -> Any:
    """Ray, joined to a cluster, or with one of this machine started."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop(NOT_FOR_RAY, None)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == LOCAL:
            options |= {
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": LOCAL_STORE_BYTES,
            }
        else:
            options["namespace"] = "ddib-fed"
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
    return ray


def _join(pipe: Connection, address: str, cpus: int) -> None:
    """Tell a cluster's address and places; a cluster of this machine lives as long as this process."""

    class Cluster:
        name, rows = address, 0

        def __init__(self) -> None:
            ray = _ray(address, cpus)
            if address == LOCAL:
                self.name = ray.get_runtime_context().gcs_address
            found = ray.cluster_resources()
            self.rows = int(found.get("GPU", 0) or found.get("CPU", 0))

        def take(self, *_: Any) -> None: ...

        def tell(self) -> None:
            time.sleep(READY_S)

    serve(pipe, lambda _: Cluster())


class Actor(WarmModel):
    """A worker on a cluster."""

    def __init__(self, recipe: bytes, device: str, version: str) -> None:
        if version != __version__:
            raise ConfigError(
                f"the cluster has ddib-fed {__version__}, and the node {version}",
                hint=f"install ddib-fed {version} with its extras node and ray in the image of the cluster",
            )
        super().__init__(replace(unpack(recipe), device=device))
        self._name = f"on {device} of {socket.gethostname()}, process {os.getpid()}"

    def describe(self) -> tuple[str, int]:
        return self._name, self.rows

    def run(self, number: int, work: bytes, remaining_s: float | None) -> bytes:
        future = self.begin(number, work, remaining_s)
        future.exception()  # waits
        return packed_end(future)


class _Relay:
    """`Served` by an actor, on a GPU where there are any, else on a core."""

    def __init__(self, say: Say, recipe: bytes, device: str, address: str) -> None:
        self._say, self._ray = say, _ray(address)
        on_gpu = device.startswith("cuda") or (device == "auto" and self._ray.cluster_resources().get("GPU"))
        actor = self._ray.remote(concurrency_groups={"work": TOGETHER, "looks": 1})(Actor)
        self._actor = actor.options(
            num_cpus=0 if on_gpu else 1, num_gpus=1 if on_gpu else 0, scheduling_strategy="SPREAD"
        ).remote(recipe, "cuda" if on_gpu else "cpu", __version__)
        self._work: dict[Any, int] = {}
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        try:
            self.name, self.rows = self._ray.get(self._actor.describe.remote())
        except self._ray.exceptions.RayError as error:
            last = str(error).strip().rpartition(chr(10))[2]
            raise NotReady(f"it ended: {last}", retry_after_s=5.0) from None

    def take(self, number: int, work: bytes | None, remaining_s: float | None) -> None:
        if work is None:
            self._actor.cancel.options(concurrency_group="looks").remote(number)
            return
        run = self._actor.run.options(concurrency_group="work")
        with self._lock:
            self._work[run.remote(number, work, remaining_s)] = number

    def tell(self) -> None:
        errors = self._ray.exceptions
        with self._lock:
            under_way = list(self._work)
        try:
            if under_way:
                for ended in self._ray.wait(under_way, timeout=LOOK_S / 4)[0]:
                    try:
                        content = self._ray.get(ended)
                    except errors.RayTaskError as error:
                        content = pack(portable(error.cause if error.cause is not None else error))
                    with self._lock:
                        number = self._work.pop(ended)
                    self._say("end", number, content)
            else:
                time.sleep(LOOK_S / 4)
            if time.monotonic() > self._looked + LOOK_S:
                self._looked = time.monotonic()
                looks = self._actor.news.options(concurrency_group="looks").remote()
                with suppress(errors.GetTimeoutError):  # the network is slow, say
                    self._say("steps", *self._ray.get(looks, timeout=LOOK_S))
        except Exception as error:  # noqa: BLE001 - without this thread nothing would be said any more
            self._say("lost", f"ended: {_first_line(error)}")
            os._exit(0)


def _serve_actor(pipe: Connection, recipe: bytes, device: str, address: str) -> None:
    serve(pipe, lambda say: _Relay(say, recipe, device, address))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
