"""A job store on real files, whose time the test moves."""

import pytest

from ddib_fed.node.config import LimitsSection
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import LIMITS, Clock, close_jobs, open_jobs


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_store(tmp_path, clock):
    """Opens the one store of the test, again and again; the last is closed."""
    opened: list[JobStore] = []

    def open_again(limits: LimitsSection = LIMITS) -> JobStore:
        while opened:
            close_jobs(opened.pop())
        opened.append(open_jobs(tmp_path, limits, clock=clock))
        return opened[-1]

    yield open_again
    for store in opened:
        close_jobs(store)


@pytest.fixture
def store(open_store):
    return open_store()
