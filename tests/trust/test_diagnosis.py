"""Each reason why a connection fails has its own name."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ddib_fed.errors import PeerUnreachable
from ddib_fed.trust import pki
from ddib_fed.trust.diagnosis import Finding, diagnose, explained, may_pass
from ddib_fed.trust.pki import certificate_pem
from tests.node.institutions import Institution
from tests.server.listening import Listening


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def south(tmp_path: Path, north: Institution) -> Institution:
    made = Institution("south.example", tmp_path / "south")
    made.admit(north)
    return made


@pytest.fixture
def node(south: Institution) -> Iterator[Listening]:
    listening = Listening(south)
    yield listening
    listening.close()


def look(address: str, north: Institution, south: Institution, **overrides) -> Finding:
    arguments = {
        "server_name": "node-1.south.example",
        "pki_folder": north.pki,
        "roots_pem": certificate_pem(south.root),
    } | overrides
    finding = diagnose(address, **arguments)
    assert finding.ok == (finding.cause == "ok")
    assert finding.ok or finding.remedy
    return finding


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener whose one connection is handed to `answer`."""

    def accept() -> None:
        connection, _address = listener.accept()
        with connection:
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def serve_tls(south: Institution, **settings) -> Callable[[socket.socket], None]:
    """A TLS server of the standard library with south's certificate, that reads once and closes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(south.pki / "leaf.pem", south.pki / "leaf.key")
    for name, value in settings.items():
        setattr(context, name, value)

    def answer(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as channel:
                channel.recv(100)
                channel.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        except OSError:
            pass  # the client hung up, which is what some of these tests are about

    return answer


def test_all_is_well(node: Listening, north: Institution, south: Institution) -> None:
    """Both accept each other; nothing is left in the folder."""
    before = set(north.pki.iterdir())
    assert look(node.address, north, south).cause == "ok"
    assert set(north.pki.iterdir()) == before


def test_nothing_listens(north: Institution, south: Institution) -> None:
    """A port that is taken and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert look(f"127.0.0.1:{taken.getsockname()[1]}", north, south).cause == "nothing-listens"


def test_what_answers_is_not_tls(north: Institution, south: Institution) -> None:
    """Plain HTTP."""
    with answering(
        lambda connection: (connection.recv(4096), connection.sendall(b"HTTP/1.1 400\r\n\r\n"))
    ) as address:  # type: ignore[arg-type,return-value]
        assert look(address, north, south).cause == "not-tls"


def test_what_answers_speaks_tls_12_only(north: Institution, south: Institution) -> None:
    """An old proxy on the way."""
    with answering(serve_tls(south, maximum_version=ssl.TLSVersion.TLSv1_2)) as address:
        assert look(address, north, south).cause == "tls-version"


def test_what_answers_is_no_grpc_server(north: Institution, south: Institution) -> None:
    """TLS with the right certificate, and then something else."""
    with answering(serve_tls(south)) as address:
        assert look(address, north, south).cause == "wrong-server"


def test_the_root_is_another(node: Listening, north: Institution, south: Institution) -> None:
    """An impostor, or a root that was replaced."""
    assert look(node.address, north, south, roots_pem=certificate_pem(north.root)).cause == "wrong-root"


def test_the_name_is_another(node: Listening, north: Institution, south: Institution) -> None:
    """Another node of the institution has the address now."""
    assert look(node.address, north, south, server_name="node-2.south.example").cause == "wrong-server"


def test_the_nodes_certificate_has_expired(node: Listening, north: Institution, south: Institution) -> None:
    """Or it is one of the two clocks."""
    past = datetime.now(UTC) - timedelta(days=2)
    pki.issue_to_folder(south.authority, south.pki, "node", "node-1", now=past)
    # The root is newer than the leaf, which is no concern of TLS.
    assert look(node.address, north, south).cause == "not-valid"


def test_our_own_certificate_has_expired(node: Listening, north: Institution, south: Institution) -> None:
    """That is found before connecting."""
    past = datetime.now(UTC) - timedelta(days=2)
    pki.issue_to_folder(north.authority, north.pki, "node", "node-1", now=past)
    assert look(node.address, north, south).cause == "own-certificate"


def test_there_is_no_certificate(
    node: Listening, north: Institution, south: Institution, tmp_path: Path
) -> None:
    """And what to do is said."""
    assert look(node.address, north, south, pki_folder=tmp_path).cause == "own-certificate"


def test_the_peer_does_not_know_our_root(node: Listening, north: Institution, south: Institution) -> None:
    """They have not added us, or have removed us."""
    south.store.remove("north.example")
    finding = look(node.address, north, south)
    assert finding.cause == "refused-us"
    assert "ddib peer add there" in finding.remedy


def test_the_host_does_not_exist(
    north: Institution, south: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is misspelt; no name server is asked here."""

    def unknown(*_arguments: object, **_keywords: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert look("nowhere.invalid:7443", north, south).cause == "name-not-found"


def test_a_name_server_that_does_not_answer_is_no_missing_host(
    north: Institution, south: Institution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may answer in a moment, and a name that does not exist will not."""

    def away(*_arguments: object, **_keywords: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    finding = look("south.example:7443", north, south)
    assert (finding.cause, may_pass(finding.cause)) == ("no-connection", True)
    assert not may_pass("name-not-found")


def test_a_fresh_certificate_that_is_refused_says_by_how_much_a_clock_would_be_wrong(
    node: Listening, north: Institution, south: Institution
) -> None:
    """gRPC closes without a reason: the age of the certificate shows what a clock can explain."""
    south.store.remove("north.example")
    fresh = look(node.address, north, south)
    assert "a node whose clock is behind by more than" in fresh.text
    pki.issue_to_folder(
        north.authority, north.pki, "node", "node-1", now=datetime.now(UTC) - timedelta(hours=12)
    )
    assert "clock is behind" not in look(node.address, north, south).text


def test_words_of_another_server_are_short_and_cannot_steer_a_terminal(
    north: Institution, south: Institution
) -> None:
    """What it sends in place of TLS is shown, escaped."""
    with answering(lambda connection: connection.sendall(b"\x1b]0;owned\x07" + b"x" * 500)) as address:
        text = look(address, north, south).text
    assert text.isprintable()
    assert len(text) < 200


def test_a_call_that_failed_although_the_connection_works_keeps_its_error(
    node: Listening, north: Institution, south: Institution
) -> None:
    """Nothing is invented; and an answer with an incident needs no diagnosis."""
    lost = PeerUnreachable("the connection broke off", hop="target south.example")
    arguments = {
        "server_name": "node-1.south.example",
        "pki_folder": north.pki,
        "roots_pem": certificate_pem(south.root),
    }
    assert explained(lost, node.address, **arguments) is lost
    node.close()
    found = explained(lost, node.address, **arguments)
    assert (found.facts["cause"], found.hop) == ("nothing-listens", "target south.example")
    answered = PeerUnreachable("as it said", incident="abc")
    assert explained(answered, node.address, **arguments) is answered
