"""The process that is a Ray driver for a node, and the actor that is a worker: whole trajectories go to actors.

Ray ends the process of a driver that has not reached the head for a minute, and its gRPC reads the environment that a
node sets for its own. So the driver is a process of its own: a node sees it end, and starts another.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np

from ddib_fed.bridge.engine.warm import Recipe
from ddib_fed.bridge.workers.limits import LOCAL
from ddib_fed.bridge.workers.process import Channel, pack, portable, unpack
from ddib_fed.bridge.workers.workbench import Broken, Workbench
from ddib_fed.errors import ConfigError, NotReady
from ddib_fed.extras import extra
from ddib_fed.version import __version__

DIAL_S: Final = 3.0
LOOK_EVERY_S: Final = 2.0
LOST_AFTER_S: Final = 10.0
"""How long the head may not answer before the driver gives up: Ray itself would wait a minute, and then end it."""
TAKE_S: Final = 5.0
"""How long an actor waits for something to say before it says nothing."""
ORPHANED_AFTER_S: Final = 60.0
"""An actor that nobody has listened to for so long ends: its node is gone, and the cluster may not know."""
LOCAL_STORE_BYTES: Final = 512 << 20
# Set by `trust.tls` for the gRPC of a node, which is another than Ray's.
NOT_FOR_RAY: Final = ("GRPC_SSL_CIPHER_SUITES",)

Crossing = tuple[bytes, list[Any]]
"""A message, packed; its arrays as uint8, which Ray carries as they are."""


@dataclass(frozen=True, slots=True)
class StartActor:
    """Start one."""

    number: int


@dataclass(frozen=True, slots=True, eq=False)
class ToActor:
    """Hand it a message."""

    number: int
    message: Any


@dataclass(frozen=True, slots=True)
class EndActor:
    """End it."""

    number: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The cluster is there; cores and GPUs that it has now."""

    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """An actor said something."""

    number: int
    message: Any


@dataclass(frozen=True, slots=True)
class ActorEnded:
    """An actor is gone."""

    number: int
    why: str
    blame: bool


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """The driver cannot go on."""

    error: Exception


def serve(channel: Channel) -> None:
    """In the driver's process: connect, then start, feed, hear and end actors as the channel says."""
    recipe, address, cpus = channel.receive()
    try:
        driver = _Driver(channel, recipe, address, cpus)
    except Exception as error:  # noqa: BLE001 - the node tells it
        channel.send(Lost(portable(error)))
        return
    threading.Thread(target=driver.watch, name="head-watch", daemon=True).start()
    while True:
        message = channel.receive()
        if isinstance(message, StartActor):
            driver.start(message.number)
        elif isinstance(message, ToActor):
            driver.give(message.number, message.message)
        elif isinstance(message, EndActor):
            driver.end(message.number)


class _Driver:
    """A connection to a cluster, and the actors that it started."""

    def __init__(self, channel: Channel, recipe: Recipe, address: str, cpus: int) -> None:
        for name in NOT_FOR_RAY:
            os.environ.pop(name, None)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
        with extra("ray", "ray", "the executor ray needs Ray"):
            import ray
        self._ray, self._channel, self._recipe, self._address = ray, channel, recipe, address
        self._connect(cpus)
        # What Ray prints about dead actors the pool says itself, in the form of the node's log.
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        # Ray has set its own, and the node decides when work ends.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._actor_class = ray.remote(concurrency_groups={"into": 1, "out": 1})(Actor)
        self._packed = ray.put(_crossing(recipe))
        self._actors: dict[int, Any] = {}
        self._looked = time.monotonic()
        found = ray.cluster_resources()
        self._gpus = int(found.get("GPU", 0))
        channel.send(Connected(int(found.get("CPU", 0)), self._gpus))

    def _connect(self, cpus: int) -> None:
        """Attach to a cluster, or start one of this machine."""
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self._address == LOCAL:
            self._ray.init(
                address=LOCAL,
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=LOCAL_STORE_BYTES,
                **options,
            )
            return
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), DIAL_S).close()
            self._ray.init(address=self._address, namespace="ddib-fed", **options)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().partition("\n")[0]
            raise NotReady(
                f"the Ray cluster at {self._address} cannot be joined: {first}",
                hint=f"on this machine: ray status --address {self._address}; it must be part of the cluster: "
                f"ray start --address {self._address} --num-cpus 0",
                retry_after_s=LOST_AFTER_S,
            ) from error

    def start(self, number: int) -> None:
        """Start an actor on a GPU where there are any, else on a core; it says `Ready` when it is."""
        device = self._recipe.device
        on_gpu = device.startswith("cuda") or (device == "auto" and self._gpus > 0)
        actor = self._actor_class.options(
            num_cpus=0 if on_gpu else 1,
            num_gpus=1 if on_gpu else 0,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        ).remote()
        self._actors[number] = actor
        actor.begin.options(concurrency_group="into").remote(
            self._packed, number, "cuda" if on_gpu else "cpu", __version__
        )
        threading.Thread(
            target=self._listen, args=(number, actor), name=f"actor-{number}", daemon=True
        ).start()

    def give(self, number: int, message: Any) -> None:
        if (actor := self._actors.get(number)) is not None:
            actor.give.options(concurrency_group="into").remote(_crossing(message))

    def end(self, number: int) -> None:
        if (actor := self._actors.pop(number, None)) is not None:
            self._ray.kill(actor)

    def watch(self) -> None:
        """Ask the head now and then; end this process when it does not answer, which tells the node."""
        threading.Thread(target=self._look, name="head-look", daemon=True).start()
        while time.monotonic() - self._looked < LOST_AFTER_S:
            time.sleep(LOOK_EVERY_S / 2)
        self._channel.send(
            Lost(
                NotReady(
                    f"the head of the Ray cluster at {self._address} has not answered for {LOST_AFTER_S:.0f} s",
                    hint=f"ray status --address {self._address}",
                    retry_after_s=LOST_AFTER_S,
                )
            )
        )
        self._channel.close()

    def _look(self) -> None:
        while True:
            self._ray.nodes()  # waits while the head is gone
            self._looked = time.monotonic()
            time.sleep(LOOK_EVERY_S)

    def _listen(self, number: int, actor: Any) -> None:
        try:
            while True:
                said = self._ray.get(actor.take.options(concurrency_group="out").remote())
                for message in said:
                    self._channel.send(Said(number, _uncrossed(message)))
        except self._ray.exceptions.ActorUnschedulableError as error:
            self._gone(number, f"found no place: {_first(error)}", blame=False)
        except self._ray.exceptions.RayActorError as error:
            self._gone(number, f"ended: {_first(error)}", blame=True)
        except OSError:
            pass  # the node closed the channel
        except Exception as error:  # noqa: BLE001 - whatever Ray says: the actor is of no use any more
            self._gone(number, f"failed: {type(error).__name__}: {_first(error)}", blame=False)

    def _gone(self, number: int, why: str, *, blame: bool) -> None:
        self._actors.pop(number, None)
        self._channel.send(ActorEnded(number, why, blame))


class Actor:
    """A worker on a cluster: `give` and `take` are its mailbox; Ray makes it from this class."""

    def __init__(self) -> None:
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._bench: Workbench | None = None
        self._heard = time.monotonic()
        threading.Thread(target=self._end_when_alone, name="node-watch", daemon=True).start()

    def begin(self, recipe: Crossing, number: int, device: str, version: str) -> None:
        """Make the model and say `Ready`, or `Broken`."""
        try:
            _check_version(version)
            made: Recipe = _uncrossed(recipe)
            name = f"{number} on {device} of {socket.gethostname()}, process {os.getpid()}"
            # The file that remembers costs is on the node's machine: an actor measures for itself.
            own = replace(made, device=device, threads=made.threads or 1, costs=None)
            self._bench = Workbench(own, name, self._outbox.put)
        except Exception as error:  # noqa: BLE001 - the pool tells it
            self._outbox.put(Broken(portable(error)))

    def give(self, message: Crossing) -> None:
        assert self._bench is not None  # nothing is given to a worker that did not say `Ready`
        self._bench.take(_uncrossed(message))

    def take(self) -> list[Crossing]:
        """What the worker has said since; nothing after a few seconds of silence."""
        self._heard = time.monotonic()
        said = []
        try:
            said.append(self._outbox.get(timeout=TAKE_S))
            while True:
                said.append(self._outbox.get_nowait())
        except Empty:
            return [_crossing(message) for message in said]

    def _end_when_alone(self) -> None:
        while time.monotonic() - self._heard < ORPHANED_AFTER_S:
            time.sleep(TAKE_S)
        os._exit(1)


def _check_version(version: str) -> None:
    if version != __version__:
        raise ConfigError(
            f"the cluster has ddib-fed {__version__}, and the node {version}",
            hint=f"install ddib-fed {version} with its extras node and ray in the image of the cluster, as on the node",
        )


def _crossing(message: Any) -> Crossing:
    head, arrays = pack(message)
    return head, [np.frombuffer(array, np.uint8) for array in arrays]


def _uncrossed(crossing: Crossing) -> Any:
    head, arrays = crossing
    return unpack(head, [bytearray(array) for array in arrays])


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
