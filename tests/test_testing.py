"""`ddib_fed.testing`: its example, settings, and nodes that do not start."""

import doctest
import socket
from pathlib import Path

import pytest

from ddib_fed import testing
from ddib_fed.errors import InputError, NotReady
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


def test_keys_are_set_where_the_template_has_them(node: NodeProcess) -> None:
    """Of any type, in any order, again, and by the table where two tables have a key."""
    node.configure({"max_open_jobs": 2, "http.listen": "127.0.0.1:9464", "calibration": ["rotation"]})
    node.configure({"max_open_jobs": 3, "round_trip": False})
    config = node.config
    assert (config.limits.max_open_jobs, config.policy.round_trip) == (3, False)
    assert (config.http.listen, config.policy.calibration) == ("127.0.0.1:9464", ("rotation",))


@pytest.mark.parametrize("key", ["listen", "max_jobs", "limits.listen"])
def test_a_key_that_is_not_in_one_table_is_refused(node: NodeProcess, key: str) -> None:
    before = node.config_path.read_text()
    with pytest.raises(InputError, match=f"have a key {key}"):
        node.configure({key: 1})
    assert node.config_path.read_text() == before
