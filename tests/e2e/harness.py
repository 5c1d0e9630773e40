"""Two institutions on this machine, for tests: set up with the README's own commands, run as real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from ddib_fed.cli.main import cli
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import UnavailableError
from ddib_fed.node import operator
from ddib_fed.node.config import NodeConfig, peer_store
from tests.e2e.processes import NodeProcess, start_node
from tests.node.flipping import BitFlipper

START_S = 300.0


# Below the kernel's ephemeral ports (from 32768), so that no outgoing connection takes a port between `free_port` and
# the node's bind; each test process has a range of its own, which starts anywhere so that two runs seldom meet.
_FIRST, _EACH = 20_000, 1_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 12
_offsets = itertools.count(random.SystemRandom().randrange(_EACH))


def free_port() -> int:
    """A loopback port that is free and that no other test process is given."""
    for _ in range(_EACH):
        port = _FIRST + _worker * _EACH + next(_offsets) % _EACH
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no free port in {_FIRST + _worker * _EACH}-{_FIRST + (_worker + 1) * _EACH - 1}")


def ddib(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def wait_until(condition: Callable[[], bool], *, seconds: float = START_S, what: str = "it") -> None:
    """Poll until the condition holds."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        pause.wait(0.05)


@dataclass
class Node:
    """One institution's node: a folder with node.toml, and a process while it runs."""

    folder: Path
    role: str
    institution: str
    port: int
    process: NodeProcess | None = None
    environment: dict[str, str] = field(default_factory=dict)
    open_files: int | None = None

    @classmethod
    def create(
        cls, folder: Path, role: str, institution: str, domain: str, *, pretrained: bool = True
    ) -> Node:
        """What an operator does on the first day, with the pretrained bundle of `domain` or, for now, none."""
        port = free_port()
        ddib("init", "node", "--institution", institution, "--role", role, "--domain", domain,
             "--listen", f"127.0.0.1:{port}", "--address", f"localhost:{port}",
             "--out", folder)  # fmt: skip
        if pretrained:
            source = resources.files("ddib_fed.models") / "pretrained" / domain
            with resources.as_file(source) as path:
                shutil.copytree(path, folder / "model")
        return cls(folder, role, institution, port)

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    @property
    def config(self) -> NodeConfig:
        return NodeConfig.load(self.config_path)

    def edit(self, old: str, new: str) -> None:
        text = self.config_path.read_text()
        assert old in text
        self.config_path.write_text(text.replace(old, new))

    def start(self, *words: str, wait: bool = True) -> Node:
        """Start the daemon, with further words; with `wait`, until it serves."""
        self.process = start_node(
            self.role,
            ["--config", str(self.config_path), *words],
            self.folder / "log.txt",
            environment=self.environment,
            open_files=self.open_files,
        )
        if wait:
            self.wait_serving()
        return self

    def wait_serving(self) -> None:
        admin = operator.Node(self.config)

        def serving() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()
            return _state(admin) == "serving"

        wait_until(serving, what=f"{self.institution} serving")

    def state(self) -> str:
        """What the operator's socket says, or "down"."""
        return _state(operator.Node(self.config))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START_S)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-4000:]


def _state(admin: operator.Node) -> str:
    try:
        return admin.status().state
    except UnavailableError:
        return "down"


def admit(at: Node, other: Node) -> None:
    """`at` admits `other`: the peer file goes by hand, the fingerprint by telephone."""
    peer_file = at.folder.parent / f"{other.institution}.peer"
    shown = ddib("peer", "export", "--config", other.config_path, "--out", peer_file, "--force")
    fingerprint = next(word for word in shown.split() if word.startswith("SHA256:"))
    ddib("peer", "add", peer_file, "--config", at.config_path, "--fingerprint", fingerprint)


@dataclass
class Pair:
    """North (source, moons) and south (target, checkerboards), each admitted by the other, and a client of north."""

    north: Node
    south: Node
    profile: Path

    @classmethod
    def create(
        cls,
        folder: Path,
        target_domain: str = "checkerboards",
        *,
        domain: str = "moons",
        pretrained: bool = True,
    ) -> Pair:
        north = Node.create(folder / "north", "source", "north.example", domain, pretrained=pretrained)
        south = Node.create(folder / "south", "target", "south.example", target_domain, pretrained=pretrained)
        admit(north, south)
        admit(south, north)
        ddib("init", "client", "--config", north.config_path, "--name", "alice", "--out", folder / "alice")
        return cls(north, south, folder / "alice" / "client.toml")

    def flipping(self) -> BitFlipper:
        wire = BitFlipper(self.south.port)
        self.dial(wire.port)
        return wire

    def dial(self, port: int) -> None:
        """Let north reach south at another port."""
        store = peer_store(self.north.config)
        entry = dataclasses.replace(store.get("south.example"), address=f"localhost:{port}")
        store.add(entry, fingerprints=[], replace=True)

    def start(self) -> Pair:
        self.south.start(wait=False)
        self.north.start(wait=False)
        self.south.wait_serving()
        self.north.wait_serving()
        return self

    def stop(self) -> None:
        self.north.stop()
        self.south.stop()

    def client(self, patience_s: float = 60.0) -> Client:
        return Client(Profile.load(self.profile), patience_s=patience_s)


def raw_windows(data: bytes, *, length: int = 32, count: int = 20) -> list[bytes]:
    starts = np.linspace(0, len(data) - length, count).astype(int)
    found = [data[start : start + length] for start in starts]
    return [window for window in found if len(set(window)) > length // 4]


def weight_windows(bundle: Path, *, count: int = 20) -> list[bytes]:
    data = (bundle / "model.safetensors").read_bytes()
    return raw_windows(data[8 + int.from_bytes(data[:8], "little") :], count=count)


def find_any(needles: list[bytes], folder: Path) -> list[Path]:
    """Files under `folder` that contain one of the runs of bytes."""
    assert needles
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


def moons(count: int, seed: int = 1) -> np.ndarray:
    from ddib_fed.data.synthetic import sample

    return sample("moons", count, seed)
