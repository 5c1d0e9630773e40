"""A source node's inside, real to the disk, whose peer is a scripted target."""

import pytest

from ddib_fed.security import tls
from ddib_fed.v1.common_pb2 import SolverSettings
from source_node.remote import Remotes
from source_node.runner import EventHub, JobRunner
from source_node.store import JobStore, StoredJob
from tests.e2e.harness import wait_until
from tests.node.tiny_nodes import make_config, make_context, make_institution, npy
from tests.protocol.examples import limits_of
from tests.source_node.jobs import job_examples
from tests.source_node.scripted_target import ScriptedTarget
from tests.source_node.served import Served

SOLVER = SolverSettings(evaluations=8)
LARGE_LIMITS = limits_of(1_000, 100_000, 800_000, 10_000)


class Source:
    """North's job runner over a store on disk; `start` it, and again after `stop` as after a restart."""

    def __init__(self, folder, north, engine, *, silence_s: float = 20.0, **settings) -> None:
        self.north = north
        self.config = make_config(folder, "north.example", "source", **settings)
        self.silence_s = silence_s
        self.open(engine)

    def open(self, engine) -> None:
        paths = self.config.paths
        self.node = make_context(self.config, self.north, engine)
        self.store = JobStore(self.node.audit, paths.spool)
        self.events = EventHub(self.store.boot)
        channels = tls.PeerChannels(paths.pki, self.node.peers)
        self.remotes = Remotes(channels, max_file_bytes=1 << 20, silence_s=self.silence_s)
        self.runner = JobRunner(self.node, self.store, self.events, self.remotes)

    def start(self):
        self.runner.start()
        return self

    def stop(self) -> None:
        self.runner.close()
        self.remotes.channels.close()
        self.store.close()
        self.node.audit.store.close()

    def submit(self, *files: bytes, **changes) -> str:
        asked: dict = {"solver": SOLVER, "deadline_s": 60, **changes}
        job: StoredJob = job_examples.submit(self.store, *(files or (npy(),)), **asked)
        self.runner.wake()
        return job.job_id

    def ended(self, job_id: str, seconds: float = 60.0) -> StoredJob:
        wait_until(lambda: self.store.get(job_id).state.ended, seconds)
        return self.store.get(job_id)

    def states(self, job: StoredJob) -> list[str]:
        return [str(item.state) for item in job.items]


@pytest.fixture
def institutions(tmp_path):
    """North and south, south admitting north."""
    north = make_institution(tmp_path / "north", "north.example")
    south = make_institution(tmp_path / "south", "south.example")
    south.admit(north)
    return north, south


@pytest.fixture
def target(institutions):
    north, south = institutions
    made = ScriptedTarget(south)
    north.admit(south, made.address)
    yield made
    made.close()


@pytest.fixture
def open_source(tmp_path, institutions, target, engine):
    """Opens north's node with more in its node.toml; not started: what a test needs before a job runs comes first."""
    opened: list[Source] = []

    def open_it(**settings) -> Source:
        opened.append(Source(tmp_path / "north", institutions[0], engine, **settings))
        return opened[-1]

    yield open_it
    for source in opened:
        source.stop()


@pytest.fixture
def source(open_source):
    return open_source()


@pytest.fixture
def served(tmp_path, institutions, target, engine):
    made = Served(tmp_path, institutions[0], engine, max_items_per_job=3, max_evaluations=100)
    yield made
    made.close()
