"""`executor = "ray"`: a node's workers are actors of a Ray cluster.

Ray ends a process that does not reach the cluster's head, and its gRPC reads the environment of the node's: so a
process beside the node joins the cluster for each actor, and passes calls on.
"""

import importlib.util
import os
import socket
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from typing import Any, Final

from ddib_fed.engine.batcher import Recipe
from ddib_fed.engine.executors import Begun, News, Pool, WarmModel, WorkerProcess, first_line, pack
from ddib_fed.errors import InternalError, NotReady, missing
from ddib_fed.names import __version__

LOCAL: Final = "local"  # instead of a cluster's address: one of this machine alone
DIAL_S: Final = 3.0
READY_S: Final = 300.0  # for the first actor: a cluster may have to start a machine for it
LOST_AFTER_S: Final = 10
LOCAL_STORE_BYTES: Final = 512 << 20
ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(LOST_AFTER_S),  # how long the head may not answer
}
NOT_FOR_RAY: Final = "GRPC_SSL_CIPHER_SUITES"
"""Set by `security.tls` for the gRPC of a node, which is another than Ray's."""


def ray_pool(recipe: Recipe, *, address: str, workers: int = 0, local_cpus: int = 1) -> Pool:
    """Start a pool of actors, at least one ready; 0 workers is one on each GPU, or core, of the cluster."""
    if importlib.util.find_spec("ray") is None:
        otherwise = 'executor = "processes" in [engine] of node.toml'
        raise missing("ray", "ray", "the executor ray needs Ray", otherwise=otherwise)
    packed = pack(replace(recipe, threads=recipe.threads or 1))
    cluster = WorkerProcess(_Cluster, address, max(workers, local_cpus))
    try:
        joined, places = cluster.made.result()
        return Pool(
            lambda _: WorkerProcess(_Relay, packed, recipe.device, joined, address == LOCAL),
            workers or max(1, places),
            what="Ray actor",
            remedy="the local Ray cluster" if address == LOCAL else f"ray status --address {address}",
            least=1,
            ready_s=READY_S,
            end=cluster.kill,
        )
    except BaseException as error:
        cluster.kill()
        if isinstance(error, BrokenExecutor):
            raise InternalError("the process that joins the Ray cluster ended") from error
        raise


def _ray(address: str, cpus: int = 0, *, own: bool = False) -> Any:
    """Ray, joined to a cluster, or with one of this machine started."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop(NOT_FOR_RAY, None)
    if own:  # as Ray sets it for the process that starts a cluster, and no other
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    options: dict[str, Any] = {"namespace": "ddib-fed"}
    try:
        if address == LOCAL:
            options = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), DIAL_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise NotReady(
            f"the Ray cluster at {address} cannot be joined: {first_line(error)}",
            hint=f"on this machine: ray status --address {address}; it must be part of the cluster: "
            f"ray start --address {address} --num-cpus 0",
            retry_after_s=LOST_AFTER_S,
        ) from None
    return ray


class _Cluster:
    """Knows a cluster's address and places; a cluster of this machine lives as long as this process."""

    def __init__(self, address: str, cpus: int) -> None:
        ray = _ray(address, cpus, own=address == LOCAL)
        resources = ray.cluster_resources()
        self._address = ray.get_runtime_context().gcs_address if address == LOCAL else address
        self._places = int(resources.get("GPU", 0) or resources.get("CPU", 0))

    def exchange(self, *_: object) -> tuple[str, int]:
        return self._address, self._places


class _Relay:
    """A model in an actor, on a GPU where there are any, else on a core."""

    def __init__(self, recipe: bytes, device: str, address: str, own: bool = False) -> None:
        self._ray = _ray(address, own=own)
        on_gpu = device.startswith("cuda") or (device == "auto" and self._ray.cluster_resources().get("GPU"))
        self._actor = (
            self._ray.remote(WarmModel)
            .options(num_cpus=0 if on_gpu else 1, num_gpus=1 if on_gpu else 0, scheduling_strategy="SPREAD")
            .remote(recipe, "cuda" if on_gpu else "cpu", __version__)
        )

    def exchange(self, begun: Begun, over: Sequence[int]) -> News:
        try:
            news: News = self._ray.get(self._actor.exchange.remote(begun, over))
        except self._ray.exceptions.RayError as error:
            last = str(error).strip().rpartition("\n")[2]
            raise NotReady(f"it ended: {last}", retry_after_s=5.0) from None
        return news
