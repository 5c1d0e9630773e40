"""A node from start to exit: its states, its signals, and nothing left behind however it ends."""

from __future__ import annotations

import signal
import threading

import pytest

from ddib_fed.errors import ConfigError, DdibError, InputError
from ddib_fed.node import daemon
from ddib_fed.node.admin import AdminClient
from ddib_fed.node.daemon import Daemon
from tests.node.tiny_nodes import make_config, make_institution, save_model
from tests.source_node.conftest import wait_until


@pytest.fixture
def config(tmp_path):
    return ready(tmp_path / "south", "south.example", "target")


def ready(folder, institution: str, role: str, **settings):
    made = make_config(folder, institution, role, **settings)
    make_institution(folder, institution)
    save_model(made)
    return made


class Loading:
    """Holds `open_engine` in the middle until told to go on; then the real one runs."""

    def __init__(self, monkeypatch) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.inside = lambda: None
        real = daemon.open_engine

        def load(config):
            self.entered.set()
            self.inside()
            assert self.go_on.wait(20)
            return real(config)

        monkeypatch.setattr(daemon, "open_engine", load)


class Running:
    """A daemon on a thread of its own."""

    def __init__(self, config) -> None:
        self.daemon = Daemon(config)
        self.code: list[int | BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.code.append(self.daemon.run())
        except DdibError as error:
            self.code.append(error)

    def serving(self) -> Running:
        wait_until(lambda: self.daemon.state() == "serving" or self.code)
        return self

    def end(self) -> int | BaseException:
        self.daemon.request_drain()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.code[0]


def test_health_and_state_tell_the_truth_from_start_to_exit(config, monkeypatch) -> None:
    """Loading and draining are not serving; the exit is 0, and the operator's socket goes with it."""
    loading = Loading(monkeypatch)
    running = Running(config)
    assert loading.entered.wait(20)
    client = AdminClient(config)
    assert (client.status().state, running.daemon.server.serving) == ("loading", False)
    loading.go_on.set()
    running.serving()
    assert (client.status().state, running.daemon.server.serving) == ("serving", True)
    assert client.status().model.sha256 == running.daemon.node.running_engine.model.bundle.digest
    assert running.end() == 0
    assert (running.daemon.state(), running.daemon.server.serving) == ("draining", False)
    assert not config.paths.admin_socket.exists()


def test_a_second_signal_stops_in_the_middle_of_loading(config, monkeypatch) -> None:
    """It does not wait for the model."""
    node, loading = Daemon(config), Loading(monkeypatch)

    def twice() -> None:
        node.on_signal(signal.SIGTERM, None)
        node.on_signal(signal.SIGINT, None)

    loading.inside = twice
    assert node.run() == 0
    assert not loading.go_on.is_set()


def test_a_second_node_on_the_same_state_is_refused(tmp_path) -> None:
    """A source by its job store, a target by the operator's socket; the first one goes on."""
    for institution, role in (("north.example", "source"), ("south.example", "target")):
        config = ready(tmp_path / role, institution, role)
        first = Running(config).serving()
        with pytest.raises(ConfigError, match="another node is running"):
            Daemon(config).run()
        assert AdminClient(config).status().state == "serving"
        assert first.end() == 0


def test_a_start_that_fails_leaves_nothing_open(config, monkeypatch) -> None:
    """A role that cannot be opened: its database is free for the next start."""

    def broken(node) -> None:
        raise InputError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(daemon, "find_roles", lambda names: [broken])
        with pytest.raises(InputError, match="broken"):
            Daemon(config)
    assert Running(config).serving().end() == 0


def test_a_node_without_a_model_ends_with_that_reason(config) -> None:
    """The error names the command, and the port is free again."""
    (config.paths.bundle / "manifest.json").unlink()
    running = Running(config)
    wait_until(lambda: running.code)
    assert running.code[0].reason == "MODEL_NOT_FOUND"
    assert not config.paths.admin_socket.exists()


def test_a_store_of_trust_that_cannot_be_read_is_loud(config, caplog) -> None:
    """It stops a start; while the node runs it is in the state, on /readyz by that, and once in the log."""
    path = config.paths.state / "trust.json"
    good = path.read_bytes()
    path.write_text("{")
    with pytest.raises(InputError, match=r"trust\.json"):
        Daemon(config)
    path.write_bytes(good)
    running = Running(config).serving()
    path.write_text("{")
    client = AdminClient(config)
    assert any("trust.json" in line for line in client.reload())
    client.reload()
    assert client.status().state.startswith("degraded: ")
    assert "trust.json" in client.status().state
    assert running.end() == 0
    said = [record for record in caplog.records if "trust.json" in record.message]
    assert [record.levelname for record in said] == ["ERROR"]
