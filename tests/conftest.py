"""What every test can ask for: the size of its form, and a place for what it found."""

import gc
import socketserver
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.trust.promises import PROMISES

# Examples are right or wrong, not late: a busy machine may take seconds for one.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="numbers of the long forms, as `make trust` and `make chaos` use"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each report of a test that holds a promise says which one, and the fact that the test states."""
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        marker = item.get_closest_marker("promise")
        if marker is None:
            continue
        (name,) = marker.args
        if name not in PROMISES:
            raise pytest.UsageError(
                f"{item.nodeid}: no promise is called {name!r}, see benchmarks/trust/promises.py"
            )
        fact = (getattr(item, "obj", None).__doc__ or item.name).strip().splitlines()[0]
        item.user_properties += [("promise", name), ("fact", fact)]


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    long_form = bool(request.config.getoption("--long"))
    return lambda short, long: long if long_form else short


@pytest.fixture
def north(tmp_path):
    """A double of north's source node, for what a client does."""
    from tests.client.scripted_source import SourceNodeDouble

    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


@pytest.fixture(scope="session")
def engine():
    """A party whose network answers with zeros."""
    from tests.node.tiny_nodes import tiny_engine

    made = tiny_engine()
    yield made
    made.close()


@dataclass
class Evidence:
    """What a test found, for docs/benchmarks/trust."""

    item: pytest.Item

    def cases(self, count: int, failed: int = 0) -> None:
        self.item.user_properties += [("cases", count), ("failed", failed)]

    def figure(self, text: str) -> None:
        self.item.user_properties.append(("figure", text))


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    return Evidence(request.node)


@pytest.fixture(scope="module")
def without_leftovers() -> Iterator[None]:
    """Servers of DICOM and HTTP end at once, and sockets that pynetdicom leaves open are no warnings of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
        yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
