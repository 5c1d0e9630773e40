"""Two nodes for tests, forked from a process that has imported their modules, and what tests look for in them."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddib_fed.node.config import peer_store
from ddib_fed.testing import START_S, NodeProcess, TwoNodes
from tests.e2e.processes import fork_node


def two_nodes(
    folder: Path, source: str | Path = "moons", target: str | Path = "checkerboards", **more: Any
) -> TwoNodes:
    """North and south, set up and not started."""
    return TwoNodes.create(folder, source, target, launch=fork_node, **more)


def lone_node(
    folder: Path,
    institution: str = "south.example",
    role: str = "target",
    model: str | Path = "checkerboards",
) -> NodeProcess:
    """A node without a peer, set up and not started."""
    return NodeProcess(folder, fork_node).set_up(institution, role, model)


def dial(nodes: TwoNodes, port: int) -> None:
    """Let the source reach the target at another port."""
    store = peer_store(nodes.source.config)
    entry = dataclasses.replace(store.get(nodes.target.institution), address=f"localhost:{port}")
    store.add(entry, fingerprints=[], replace=True)


def wait_until(condition: Callable[[], object], seconds: float = START_S, *, what: str = "it") -> None:
    """Poll until the condition holds."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        pause.wait(0.02)


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
    from ddib_fed.datasets import sample

    return sample("moons", count, seed)
