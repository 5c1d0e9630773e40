"""A node from start to exit: its states, its signals, its audit log, and nothing left behind however it ends."""

import errno
import logging
import signal
import threading
import urllib.error
import urllib.request

import pytest

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DdibError, InputError
from ddib_fed.names import __version__
from ddib_fed.node import daemon
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.node.daemon import Daemon
from ddib_fed.node.operator import Node
from ddib_fed.record import Settings
from ddib_fed.security import pki
from ddib_fed.security.audit import lines_of, verify
from ddib_fed.security.identity import Identity
from ddib_fed.testing import free_port
from tests import audit_rows
from tests.e2e.harness import wait_until
from tests.node.institutions import issue_client
from tests.node.tiny_nodes import make_config, make_institution, npy, save_model
from tests.small_disks import small_disk


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

    def serving(self):
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
    client = Node(config)
    assert (client.status().state, running.daemon.server.serving) == ("loading", False)
    loading.go_on.set()
    running.serving()
    assert (client.status().state, running.daemon.server.serving) == ("serving", True)
    assert client.status().model.sha256 == running.daemon.node.running_engine.model.bundle.digest
    assert running.end() == 0
    assert (running.daemon.state(), running.daemon.server.serving) == ("draining", False)
    assert not config.paths.admin_socket.exists()


def test_a_second_signal_stops_in_the_middle_of_loading(config, monkeypatch) -> None:
    node, loading = Daemon(config), Loading(monkeypatch)

    def twice() -> None:
        node.on_signal(signal.SIGTERM, None)
        node.on_signal(signal.SIGINT, None)

    loading.inside = twice
    assert node.run() == 0
    assert not loading.go_on.is_set()


def test_a_start_that_fails_leaves_nothing_open(config, monkeypatch) -> None:
    def broken(node) -> None:
        raise InputError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(daemon, "find_roles", lambda names: [broken])
        with pytest.raises(InputError, match="broken"):
            Daemon(config)
    assert Running(config).serving().end() == 0


def test_a_store_of_trust_that_cannot_be_read_is_loud(config, caplog) -> None:
    """While the node runs it is in the state, on /readyz by that, and once in the log."""
    running = Running(config).serving()
    (config.paths.state / "trust.json").write_text("{")
    client = Node(config)
    assert any("trust.json" in line for line in client.reload())
    client.reload()
    assert client.status().state.startswith("degraded: ")
    assert "trust.json" in client.status().state
    assert running.end() == 0
    said = [record for record in caplog.records if "trust.json" in record.message]
    assert [record.levelname for record in said] == ["ERROR"]


@pytest.mark.slow
def test_a_node_is_not_ready_while_its_disk_is_full(tmp_path) -> None:
    """`ddib status` and /readyz name the folder; with room it serves again by itself."""
    with small_disk(tmp_path / "disk", 64) as disk:
        config = ready(disk.folder / "north", "north.example", "source")
        port = free_port()
        text = config.path.read_text()
        config.path.write_text(text.replace("[http]", f'[http]\nlisten = "127.0.0.1:{port}"', 1))
        config = NodeConfig.load(config.path)
        running = Running(config).serving()
        try:
            client = Node(config)
            disk.fill()
            wait_until(lambda: client.status().state.startswith("degraded: the disk of "))
            with pytest.raises(urllib.error.HTTPError) as unready:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60)
            assert unready.value.code == 503
            assert str(disk.folder) in unready.value.read().decode()
            disk.free()
            wait_until(lambda: client.status().state == "serving")
        finally:
            assert running.end() == 0


def test_metrics_say_what_waits_and_how_much_room_there_is(tmp_path, monkeypatch) -> None:
    """A job for a peer that is away waits, and its file is in the spool."""
    folder, port, file = tmp_path / "north", free_port(), npy(40)
    config = make_config(folder, "north.example", "source")
    text = config.path.read_text().replace("[http]", f'[http]\nlisten = "127.0.0.1:{port}"', 1)
    config.path.write_text(text)
    save_model(config)
    make_institution(folder, "north.example").admit(make_institution(tmp_path / "south", "south.example"))
    issue_client(config.paths.pki, tmp_path / "alice", "alice")
    running = Running(NodeConfig.load(config.path)).serving()
    try:
        address = running.daemon.server.address
        profile = Profile(
            institution="north.example", source_address=address, source_identity="node-1.north.example",
            name="alice", pki=str(tmp_path / "alice"),
        )  # fmt: skip
        with Client(profile) as client:
            client.submit([file], "south.example/moons", Request(Settings(evaluations=8)))

        def shown() -> str:
            return str(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())

        wait_until(lambda: 'ddib_jobs{state="queued"} 1.0\n' in shown())
        metrics = dict(line.rsplit(" ", 1) for line in shown().splitlines() if line[0] != "#")
        assert float(metrics["ddib_spool_bytes"]) == len(file)
        assert float(metrics["ddib_disk_free_bytes"]) > 0
        assert metrics[f'ddib_build_info{{version="{__version__}"}}'] == "1.0"

        def broken(_path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("ddib_fed.node.daemon.shutil.disk_usage", broken)
        assert "ddib_disk_free_bytes 0.0\n" in shown()
        monkeypatch.undo()
    finally:
        assert running.end() == 0


# The audit log


@pytest.fixture
def running(config: NodeConfig):
    node = Running(config).serving()
    yield node
    node.end()


def test_start_and_stop_have_their_lines(config: NodeConfig) -> None:
    for _ in range(2):
        node = Running(config).serving()
        model = node.daemon.node.running_engine.model.bundle.digest
        node.end()
    found = audit_rows.records(config.paths.store)
    assert [record["act"] for record in found] == ["node_started", "node_stopped"] * 2
    assert (found[0]["model"], found[0]["roles"], found[0]["peers"]) == (model, ["target"], [])
    assert found[1]["by"] == "drain"
    assert found[0]["trust"] == found[2]["trust"]
    assert verify(lines_of(config.paths.store)).ok


def test_files_that_somebody_changed_by_hand_are_written_down(config, running, tmp_path, caplog):
    """A peer admitted, suspended, resumed and removed without a command, a withdrawal, another certificate."""
    caplog.set_level(logging.INFO, logger="ddib_fed.node.admin")
    north = make_institution(tmp_path / "north", "north.example")
    look = running.daemon._look
    store = peer_store(config)
    store.add(north.peer(), fingerprints=north.peer().fingerprints)
    look()
    free = store.file.read_bytes()
    store.file.write_bytes(free.replace(b'"suspended": {}', b'"suspended": {"north.example": "audit"}'))
    look()
    store.file.write_bytes(free)
    look()
    store.remove("north.example")
    look()
    store.withdraw(Identity("south.example", "client", "bob"))
    look()
    renewed = pki.issue_to_folder(pki.load_authority(config.paths.pki), config.paths.pki, "node", "node-1")
    look()
    look()
    changes = [
        change
        for record in audit_rows.records(config.paths.store, "trust_changed")
        for change in record["changes"]
    ]
    fingerprint = pki.fingerprint(north.root)
    assert changes == [
        "added peer north.example: spiffe://north.example/node/node-1 at 127.0.0.1:7443",
        f"added root {fingerprint} of north.example",
        "added suspended north.example",
        "removed suspended north.example",
        "removed peer north.example: spiffe://north.example/node/node-1 at 127.0.0.1:7443",
        f"removed root {fingerprint} of north.example",
        "added withdrawn spiffe://south.example/client/bob",
    ]
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("admin")]
    assert logged == changes
    (changed,) = audit_rows.records(config.paths.store, "certificate_changed")
    leaf = pki.parse_certificates(renewed.cert_chain_pem, "leaf")[0]
    assert changed["certificate"] == pki.fingerprint(leaf)


def test_a_log_that_is_cut_while_the_node_runs_makes_it_degraded(config, running):
    """Within the time of its check, without a call; with what to do; and the log no longer verifies."""
    Node(config).reload()
    path = config.paths.store
    assert len(audit_rows.records(path, "reload")) == 1
    running.daemon._look()
    audit_rows.cut(path, 1)
    assert Node(config).status().state == "serving"
    running.daemon._look()
    state = Node(config).status().state
    assert state.startswith("degraded: the audit log ")
    assert "was cut while the node ran" in state
    assert "ddib audit verify" in state
    assert not verify(lines_of(path)).ok
