"""`ddib_fed.testing`: its example, settings, and nodes that do not start."""

import doctest
import socket
from pathlib import Path

import pytest

from ddib_fed import testing
from ddib_fed.errors import NotReady
from ddib_fed.testing import NodeProcess, free_port
from tests.e2e.harness import lone_node, two_nodes


@pytest.mark.e2e
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are children of this process, as they are for whoever imports the module."""
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(testing, report=False)
    assert (failed, tried) == (0, 5)


@pytest.mark.e2e
def test_a_node_that_cannot_start_is_shown_by_its_log_and_the_other_is_killed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        nodes = two_nodes(tmp_path, ports=(free_port(), busy))
        with pytest.raises(NotReady, match=str(busy)) as caught, nodes:
            pass
    assert caught.value.hop == "target south.example"
    assert [node.state() for node in nodes.both] == ["down", "down"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> NodeProcess:
    return lone_node(tmp_path_factory.mktemp("lone") / "south")
