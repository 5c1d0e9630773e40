"""Two real nodes, each pinned to a core of its own, a client's work through them, and what a process holds."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.command import Run
from ddib_fed import Request, Settings
from ddib_fed.datasets import load_shipped
from ddib_fed.testing import NodeProcess, Process, TwoNodes, cpu_seconds, launch_process

Array = NDArray[np.float32]
EVALUATIONS = 48


def two_cores() -> tuple[int, int]:
    """Return the cores of the source's and the target's node."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for each node")
    return cores[0], cores[1]


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Inside, this thread and the processes that it starts run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def two_nodes(
    run: Run, source: str, target: str, settings: Mapping[str, object] | None = None
) -> Iterator[TwoNodes]:
    """North with the shipped model of `source`, south with that of `target`: by their commands, pinned, serving."""
    with tempfile.TemporaryDirectory(prefix="ddib-speed-") as folder:
        # A smoke leaves out the search for the best size of a network call.
        keys = {"threads": 1, **({"merge_pixels": 4096} if run.smoke else {}), **(settings or {})}
        with TwoNodes.create(folder, source, target, settings=keys, launch=_launch_pinned) as nodes:
            yield nodes


def _launch_pinned(node: NodeProcess, words: Sequence[str]) -> Process:
    with pinned(two_cores()[node.role == "target"]):
        return launch_process(node, words)


def arrived(pair: TwoNodes, files: Sequence[bytes], evaluations: int = EVALUATIONS) -> float:
    """Return the seconds from submitting a job to its last result at the client."""
    with pair.client() as client:
        started = time.perf_counter()
        results = list(client.translate(files, pair.to, Request(Settings(evaluations=evaluations))))
        if len(results) != len(files):
            raise SystemExit(f"{len(results)} of {len(files)} items arrived")
        return time.perf_counter() - started


def pid_of(node: NodeProcess) -> int:
    if node.process is None:
        raise SystemExit(f"the node of {node.institution} does not run")
    return node.process.pid


def of_both(pair: TwoNodes) -> list[float]:
    """Return the CPU seconds of the source's and the target's node."""
    return [cpu_seconds(pid_of(node)) for node in pair.both]


def test_pictures(run: Run, count: int) -> Array:
    """Return test pictures of the shipped satellite domain, (N, 3, 32, 32) in [-1, 1], repeated; in a smoke clouds."""
    if run.smoke:
        small = np.random.default_rng(0).uniform(-0.7, 0.6, (count, 3, 4, 4)).astype(np.float32)
        return np.asarray(ndimage.zoom(small, (1, 1, 8, 8), order=1))
    pictures = load_shipped("satellite").test
    return pictures[np.arange(count) % len(pictures)]


def png_files(run: Run, count: int) -> list[bytes]:
    pixels = np.rint((test_pictures(run, count).transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    return [saved(Image.fromarray(picture), "PNG") for picture in pixels]


def saved(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def npy_file(points: NDArray[np.floating]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, points)
    return stream.getvalue()


def held(pid: int) -> dict[str, float]:
    """Return what a process holds now: MB of anonymous resident memory, descriptors and threads."""
    process = Path(f"/proc/{pid}")
    lines = (process / "status").read_text().splitlines()
    values = {key: rest for key, _, rest in (line.partition(":") for line in lines)}
    resident = int(values["RssAnon"].split()[0]) * 1024 / 1e6
    return {
        "resident": resident,
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(values["Threads"]),
    }
