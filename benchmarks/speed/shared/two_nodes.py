"""Two real nodes, each pinned to a core of its own, and the same work in two pinned processes without nodes.

What `federated`, `clients` and `soak` measure with: no benchmark by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.shared.harness import ROOT
from ddib_fed import Request
from ddib_fed.record import Part, Settings
from ddib_fed.testing import NodeProcess, Process, TwoNodes, cpu_seconds, launch_process

Array = NDArray[np.float32]
EVALUATIONS = 48


def two_cores() -> tuple[int, int]:
    """The cores of the source's and the target's node."""
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
def two_nodes(source: str, target: str, settings: Mapping[str, object] | None = None) -> Iterator[TwoNodes]:
    """North with the shipped model of `source`, south with that of `target`: by their commands, pinned, warm."""
    with tempfile.TemporaryDirectory(prefix="ddib-speed-") as folder:
        keys = {"threads": 1, **(settings or {})}
        with TwoNodes.create(folder, source, target, settings=keys, launch=_launch_pinned) as nodes:
            yield nodes


def _launch_pinned(node: NodeProcess, words: Sequence[str]) -> Process:
    node.environment["PYTHONPATH"] = str(ROOT)
    with pinned(two_cores()[node.role == "target"]):
        return launch_process(node, words)


def arrived(pair: TwoNodes, files: Sequence[bytes], target: str, evaluations: int = EVALUATIONS) -> float:
    """Seconds from submitting a job to its last result at the client, who then acknowledges."""
    with pair.client() as client:
        started = time.perf_counter()
        job = client.submit(files, f"south.example/{target}", Request(Settings(evaluations=evaluations)))
        results = list(client.results(job.job_id))
        seconds = time.perf_counter() - started
        if sorted(result.item for result in results) != list(range(len(files))):
            raise SystemExit(f"{len(results)} of {len(files)} items arrived")
        client.acknowledge(job.job_id, [(each.item, each.files[Part.TRANSLATION].sha256) for each in results])
    return seconds


def of_both(pair: TwoNodes) -> list[float]:
    """CPU seconds of the source's and the target's node."""
    return [cpu_seconds(node.process.pid) for node in pair.both]


def png_files(count: int) -> tuple[list[bytes], Array]:
    """Test pictures of the shipped satellite domain, as files and as (N, 3, 32, 32) in [-1, 1]; repeated as needed."""
    from ddib_fed.data.pictures import encode_png
    from ddib_fed.datasets import load_shipped

    pictures = load_shipped("satellite").test
    chosen = pictures[np.arange(count) % len(pictures)]
    pixels = np.rint((chosen.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    return [encode_png(each) for each in pixels], chosen


# The same work without nodes


@dataclass(frozen=True, slots=True)
class _Half:
    """The work of one process of `InProcess`."""

    source: str
    target: str
    together: int
    core: int


class InProcess:
    """Two pinned processes that each translate half of the samples with both models: the best setting without nodes."""

    def __init__(self, source: str, target: str, together: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._together = together
        self._pipes: list[Connection[Any, Any]] = []
        self._processes = []
        for core in two_cores():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, _Half(source, target, together, core)))
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()  # the models are loaded and warm

    def translate(self, samples: Array, evaluations: int = EVALUATIONS) -> float:
        """Seconds until both halves are translated."""
        started = time.perf_counter()
        for pipe, half in zip(self._pipes, np.array_split(samples, 2), strict=True):
            pipe.send(("translate", half, evaluations))
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - started

    def stop_and_wait(self, samples: Array, evaluations: int = EVALUATIONS) -> float:
        """Seconds when one process encodes a batch, then the other decodes it, and only then the next is encoded."""
        started = time.perf_counter()
        encoding, decoding = self._pipes
        for start in range(0, len(samples), self._together):
            encoding.send(("encode", samples[start : start + self._together], evaluations))
            decoding.send(("decode", encoding.recv(), evaluations))
            decoding.recv()
        return time.perf_counter() - started

    def calls(self, samples: Array, evaluations: int) -> list[float]:
        """CPU seconds of the network calls of encoding, and of decoding, without solver, check or anything else."""
        self._pipes[0].send(("calls", samples, evaluations))
        seconds: list[float] = self._pipes[0].recv()
        return seconds

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


def _serve(pipe: Connection[Any, Any], half: _Half) -> None:
    """One process of `InProcess`."""
    os.sched_setaffinity(0, {half.core})
    from importlib import resources

    from ddib_fed.engine.local_party import open_party
    from ddib_fed.models.bundle import load_bundle

    folder = resources.files("ddib_fed.models") / "pretrained"
    parties = []
    for name in (half.source, half.target):
        with resources.as_file(folder / name) as path:
            parties.append(open_party(load_bundle(path), together=half.together, threads=1))
    shape = parties[0].model.sample_shape
    works = {
        "translate": _translate,
        "encode": _encode,
        "decode": _decode,
        "calls": partial(_calls, together=half.together),
    }
    _translate(parties, np.zeros((half.together, *shape), np.float32) + 0.1, 4)
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        name, *given = work
        pipe.send(works[name](parties, *given))


def _translate(parties: Sequence[Any], samples: Array, evaluations: int) -> int:
    from ddib_fed.engine.party import ToTranslate, TranslatedItem, translate

    items = [
        ToTranslate(number, each, noise=noise) for number, (each, noise) in enumerate(_each(parties, samples))
    ]
    outcomes = list(translate(parties[0], parties[1], items, _leg(evaluations)))
    return sum(isinstance(outcome, TranslatedItem) for outcome in outcomes)


def _encode(parties: Sequence[Any], samples: Array, evaluations: int) -> list[Any]:
    """The latents of pictures."""
    from ddib_fed.engine.party import ToEncode

    items = [
        ToEncode(number, each, None, noise) for number, (each, noise) in enumerate(_each(parties, samples))
    ]
    return [outcome.latent for outcome in parties[0].encode_each(items, _leg(evaluations))]


def _decode(parties: Sequence[Any], latents: Sequence[Any], evaluations: int) -> int:
    from ddib_fed.engine.party import ToDecode

    items = [ToDecode(number, latent) for number, latent in enumerate(latents)]
    return len(list(parties[1].decode_each(items, _leg(evaluations))))


def _calls(parties: Sequence[Any], samples: Array, evaluations: int, *, together: int) -> list[float]:
    import torch

    seconds = []
    for party in parties:
        denoiser, level = party.model.denoiser(), party.model.bundle.schedule.level(0.0)
        started = time.process_time()
        with torch.no_grad():
            for part in torch.split(torch.from_numpy(samples), together):
                for _ in range(evaluations):
                    denoiser(part, level)
        seconds.append(time.process_time() - started)
    return seconds


def _each(parties: Sequence[Any], samples: Array) -> list[tuple[Array, Any]]:
    """Items and what makes their noise."""
    generator = np.random.default_rng(0)

    def noise(_: Array, shape: tuple[int, ...]) -> Array:
        return generator.standard_normal(shape, np.float32)

    picture = parties[0].model.is_picture
    return [(each, noise) for each in (np.split(samples, len(samples)) if picture else [samples])]


def _leg(evaluations: int) -> Any:
    from ddib_fed.diffusion.plans import SolverSettings
    from ddib_fed.engine.party import Leg

    return Leg(SolverSettings(evaluations=evaluations))


# What a node holds


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at one moment."""

    resident_bytes: int
    descriptors: int
    threads: int


def held(pid: int) -> Held:
    """What a process holds now."""
    process = Path(f"/proc/{pid}")
    lines = (process / "status").read_text().splitlines()
    values = {key: rest for key, _, rest in (line.partition(":") for line in lines)}
    resident = int(values["RssAnon"].split()[0]) * 1024
    return Held(resident, len(os.listdir(process / "fd")), int(values["Threads"]))  # noqa: PTH208
