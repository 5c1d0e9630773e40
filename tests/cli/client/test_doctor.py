"""`ddib doctor` names the cause at the first step that fails."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from ddib_fed.cli.main import run
from ddib_fed.cli.node.making import SourceNode, make_client, make_node
from ddib_fed.errors import ExitCode
from ddib_fed.trust.identity import Identity
from tests.client.scripted_source import NORTH, SourceNodeDouble


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


def doctor(profile) -> int:
    return run(["doctor", "--profile", str(profile)])


def test_all_is_well(north, capsys):
    """Each step with what was found."""
    assert doctor(north.profile_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "profile"], ["ok", "certificate"], ["ok", "connection"], ["ok", "service"]
    ]  # fmt: skip


def test_nothing_listens(north, capsys):
    """Exit 9; the steps before it went well."""
    north.stop()
    assert doctor(north.profile_path) == ExitCode.UNAVAILABLE
    captured = capsys.readouterr()
    assert "ok    certificate" in captured.out
    assert "no-connection" in captured.err


def test_what_listens_does_not_speak_tls(north, capsys):
    """Plaintext at the address, by name."""
    text = north.profile_path.read_text()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        north.profile_path.write_text(text.replace(f"localhost:{north.port}", f"127.0.0.1:{port}"))

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert doctor(north.profile_path) == ExitCode.UNAVAILABLE
        thread.join()
    assert "not-tls" in capsys.readouterr().err


def test_another_root_of_the_same_name(north, tmp_path, capsys):
    """An impostor of north: its certificate does not come from the root that this client holds."""
    impostor = make_node(tmp_path / "impostor", institution=NORTH, roles=("source",), domain="moons",
                         name="node-1", listen="127.0.0.1:1", address="localhost:1")  # fmt: skip
    source = SourceNode(Identity(NORTH, "node", "node-1"), f"localhost:{north.port}", impostor.paths.pki)
    assert doctor(make_client(source, tmp_path / "mallory", name="mallory")) == ExitCode.UNAVAILABLE
    assert "wrong-root" in capsys.readouterr().err


def test_a_certificate_of_somebody_else(north, capsys):
    """The folder's certificate is not the profile's."""
    north.profile_path.write_text(north.profile_path.read_text().replace('"alice"', '"bob"'))
    assert doctor(north.profile_path) == ExitCode.REFUSED
    assert "client/alice" in capsys.readouterr().err


def test_no_profile_is_the_first_step(tmp_path, capsys):
    """As JSON: one step that is not well."""
    assert run(["doctor", "--format", "json", "--profile", str(tmp_path / "none.toml")]) == ExitCode.NOT_FOUND
    steps = json.loads(capsys.readouterr().out)
    assert [(step["step"], step["ok"]) for step in steps] == [("profile", False)]
