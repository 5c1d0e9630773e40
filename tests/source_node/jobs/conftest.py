"""A job store on real files, whose time the test moves."""

import pytest

from source_node.records import JobLimits
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import LIMITS, Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_store(tmp_path, clock):
    """Opens the one store of the test, again and again; the last is closed."""
    opened: list[JobStore] = []

    def open_again(limits: JobLimits = LIMITS) -> JobStore:
        for store in opened:
            store.close()
        opened.append(JobStore(tmp_path / "jobs.sqlite", tmp_path / "spool", limits, clock=clock))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()
