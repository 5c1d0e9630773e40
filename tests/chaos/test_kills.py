"""kill -9 at every step and at random: what was accepted is finished once, and what a restart costs is published."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import JobNotFound
from ddib_fed.record import Part, Settings
from ddib_fed.testing import NodeProcess, TwoNodes
from tests.chaos import failpoints, load
from tests.client.scripted_source import npy as npy_of
from tests.e2e.harness import moons, two_nodes
from tests.e2e.processes import PLANT
from tests.node.tiny_nodes import npy
from tests.node.volume_examples import npy as volume_npy

pytestmark = [pytest.mark.e2e, pytest.mark.promise("jobs"), pytest.mark.timeout(7_200)]


class Planted:
    """A pair whose nodes die at a point when it is armed."""

    def __init__(self, folder: Path) -> None:
        self.pair = load.stub_pair(folder)
        self.took: list[float] = []
        self.first_s = 0.0
        self._armed = {node.role: folder / f"{node.role}.point" for node in self.pair.both}
        for node in self.pair.both:
            node.environment = {PLANT: failpoints.PLANTED, failpoints.FILE: str(self._armed[node.role])}
        self.pair.start()
        self.first_s = load.cpu_seconds(self.pair.source.process.pid)

    def arm(self, node: NodeProcess, point: str) -> None:
        self._armed[node.role].write_text(point)

    def disarm(self, node: NodeProcess) -> None:
        self._armed[node.role].unlink()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    made = Planted(tmp_path_factory.mktemp("planted"))
    yield made
    made.pair.kill()


class Visit:
    """One client's whole way with one job, on a thread: submit, fetch, acknowledge, delete."""

    def __init__(self, pair: TwoNodes, number: int) -> None:
        self.job_id = ""
        self.problem: BaseException | None = None
        self._pair, self._number = pair, number
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._go()
        except BaseException as error:  # noqa: BLE001 - raised again by `end`
            self.problem = error

    def _go(self) -> None:
        files = [npy(40, load.ITEMS * self._number + item) for item in range(load.ITEMS)]
        with self._pair.client() as client:
            client.domains(own_alone=True)  # a node that never answered is waited for only a few seconds
            self.job_id = client.submit(files, load.STUB_TARGET, Request(Settings(evaluations=8))).job_id
            results = list(client.results(self.job_id))
            assert sorted(result.item for result in results) == list(range(load.ITEMS))
            assert client.get(self.job_id).state == "FINISHED"
            # The tiny network's translation of a point is the point: a result is known beforehand.
            sent = {n: hashlib.sha256(file).digest() for n, file in enumerate(files)}
            assert {r.item: r.files[Part.TRANSLATION].sha256 for r in results} == sent
            left = client.acknowledge(
                self.job_id, [(r.item, r.files[Part.TRANSLATION].sha256) for r in results]
            )
            assert left == 0
            client.delete(self.job_id)
            with pytest.raises(JobNotFound):
                client.get(self.job_id)

    def end(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()
        if self.problem is not None:
            raise self.problem


POINTS = [*failpoints.SOURCE_POINTS, *failpoints.TARGET_POINTS]


@pytest.mark.parametrize(
    "point",
    # `make test` takes every third; all are in the long form.
    [pytest.param(point, marks=[pytest.mark.long] if n % 3 else []) for n, point in enumerate(POINTS)],
    ids=lambda point: point.replace(" ", "-"),
)
def test_a_node_killed_at_any_step_loses_nothing(planted: Planted, point: str) -> None:
    """kill -9 at a named step of source or target, restart: the client has each result once and the node no trace."""
    pair = planted.pair
    node = pair.source if point in failpoints.SOURCE_POINTS else pair.target
    planted.arm(node, point)
    visit = Visit(pair, POINTS.index(point))
    assert load.gone(node) == -9
    planted.disarm(node)
    planted.took.append(load.restart(node))
    visit.end()
    load.check_disk(pair, set())
    assert not list(pair.source.config.paths.spool.rglob("*"))


def test_a_killed_node_starts_as_fast_as_a_new_one(planted: Planted, evidence) -> None:
    """After each of those kills it served again, with its jobs, at the CPU time of its first start without jobs."""
    if not planted.took:
        planted.pair.source.kill()
    took = planted.took or [load.restart(planted.pair.source)]
    first = f"{planted.first_s:.2f} s at the first start"
    evidence.figure(
        f"median {median(took):.2f}, longest {max(took):.2f} s of CPU over {len(took)} restarts, {first}"
    )
    assert median(took) < 2 * planted.first_s


def killed_at_random(
    pair: TwoNodes, feeder: load.Feeder, kills: int, longest_s: float, seed: int
) -> list[float]:
    """Kill either node so often, at random moments; the CPU seconds of each restart that was waited for."""
    chance = random.Random(seed)
    took = []
    for _ in range(kills):
        node = chance.choice((pair.source, pair.source, pair.target))
        threading.Event().wait(chance.uniform(0.0, longest_s))
        node.kill()
        # Now and then the node is killed again while it starts.
        if chance.random() < 0.15:
            node.start(wait=False)
            continue
        took.append(load.restart(node))
    feeder.stop()
    for node in pair.both:
        node.wait_serving()
    feeder.settle()
    return took


# Of a connection that is reset inside `SSLContext.wrap_socket`, Python leaves the socket to the garbage collector.
RESET = pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")


@RESET
def test_random_kills_with_a_stub_engine(tmp_path: Path, amount, evidence) -> None:
    """kill -9 of either node at random moments while a client submits: every accepted job is finished once."""
    kills = amount(5, 1_000)
    pair = load.stub_pair(tmp_path)
    for node in pair.both:  # a backlog of hundreds of short jobs is part of it
        node.configure({"max_open_jobs": 1_000})
    with pair, load.Feeder(pair) as feeder:
        took = killed_at_random(pair, feeder, kills, 0.6, seed=1)
        load.check_books(pair, feeder)
        load.check_told(pair.source, feeder.accepted.values())
        evidence.cases(kills)
        evidence.figure(
            f"{len(feeder.accepted)} accepted jobs in {feeder.tries} tries, 0 lost, 0 twice; recovery: median "
            f"{median(took):.2f}, longest {max(took):.2f} s of CPU"
        )


class Shipped(NamedTuple):
    """Shipped models, of which most kills fall into the middle of a computation."""

    source: str
    target: str
    item: Callable[[int], bytes]
    evaluations: int


def map_of_256(seed: int) -> bytes:
    """A large picture, smooth as a map is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return encode_png(coarse.repeat(32, 0).repeat(32, 1))


def block_of_a_head(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), np.uint8)
    return volume_npy(coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2))


REAL = {
    "points": Shipped("moons", "checkerboards", lambda seed: npy_of(moons(1_000, seed=seed)), 96),
    "latents": Shipped("satellite-256", "relief-256", map_of_256, 48),
    "volumes": Shipped("brain-t1-volume", "brain-t2-volume", block_of_a_head, 8),
}


@RESET
@pytest.mark.parametrize(
    "kind",
    # Of volumes e2e/translation/test_volumes.py kills a node in `make test`.
    [kind if kind == "points" else pytest.param(kind, marks=pytest.mark.long) for kind in REAL],
)
def test_random_kills_with_the_real_engine(kind: str, tmp_path: Path, amount, evidence) -> None:
    """The same with shipped models of points, of latents behind autoencoders and of volumes."""
    kills, models = amount(1, 50), REAL[kind]
    work = {
        "target": f"south.example/{models.target}",
        "files": lambda number: [models.item(1000 * number + item) for item in range(load.ITEMS)],
        "settings": Settings(evaluations=models.evaluations),
        "pause_s": 1.0,
    }
    with two_nodes(tmp_path, models.source, models.target) as pair, load.Feeder(pair, **work) as feeder:
        took = killed_at_random(pair, feeder, kills, 3.0, seed=2)
        load.check_books(pair, feeder)
        load.check_told(pair.source, feeder.accepted.values())
        evidence.cases(kills)
        longest = max(took, default=0.0)
        evidence.figure(
            f"{len(feeder.accepted)} accepted jobs, 0 lost, 0 twice; longest recovery {longest:.2f} s of CPU"
        )
