"""What a diagnosis says of a peer, and of an HTTP CONNECT proxy, which is used where the configuration names it.

`tests/cli/client/test_broken_setups.py` has each cause.
"""

from pathlib import Path

import pytest

from ddib_fed.errors import ConfigError, DdibError, PeerUnreachable
from ddib_fed.protocol.addresses import Proxy
from ddib_fed.security import tls
from ddib_fed.security.diagnosis import PASSING, Diagnosis, diagnose, explained
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.node.listening import ASK, Listening
from tests.security.connect_proxy import proxying


def look(node: Listening, north: Institution, proxy: Proxy | None, address: str = "") -> Diagnosis:
    return diagnose(
        address or node.address, server_name="node-1.south.example", pki_folder=north.pki,
        roots_pem=certificate_pem(node.south.root), proxy=proxy,
    )  # fmt: skip


def asked(north: Institution, proxy: Proxy | None) -> str:
    """Who south says is calling."""
    channels = tls.PeerChannels(north.pki, north.store, proxy=proxy)
    try:
        stub = decoding_pb2_grpc.DecodingServiceStub(channels.get("south.example"))
        return stub.DescribeDomain(ASK, timeout=60).side.institution
    finally:
        channels.close()


@pytest.mark.parametrize("login", ["", "north:a secret: with a colon"])
def test_peers_are_dialled_through_the_proxy_which_sees_ciphertext(login, node, north, monkeypatch):
    """Whatever the environment says; what crosses the proxy begins as TLS and holds none of the words that cross."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "*")
    with proxying(login=login) as proxy:
        assert asked(north, Proxy(proxy.address, login)) == "spiffe://north.example/node/node-1"
        assert proxy.asked == [node.address]
        carried = bytes(proxy.carried)
    assert carried.startswith(b"\x16\x03")
    assert len(carried) > 2_000
    for word in (b"spiffe", b"DescribeDomain", b"ddib_fed", b"Issuing", b"north.example"):
        assert word not in carried, word


@pytest.mark.parametrize(
    ("answer", "cause", "words"),
    [
        ("403 Forbidden", "proxy-refused", "answered 403 (Forbidden)"),
        ("407 Proxy Authentication Required", "proxy-refused", "it asks for a login"),
        ("503 Service Unavailable", "no-connection", "cannot reach"),
        ("403 \x1b[2J", "proxy-refused", "is no HTTP proxy"),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_named(answer, cause, words, node, north):
    """With its answer, which cannot steer a terminal, and what to do."""
    with proxying(answer=answer) as proxy:
        finding = look(node, north, Proxy(proxy.address))
    assert (finding.cause, words in finding.text, finding.text.isprintable()) == (cause, True, True), finding
    assert node.address in finding.text + finding.remedy
    assert (cause in PASSING) == (cause == "no-connection")


def test_a_login_is_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "proxy.login"
    file.write_text("north:secret\n")
    file.chmod(0o644)
    with pytest.raises(DdibError, match=r"chmod 600|read"):
        Proxy.of("http://proxy:3128", file)
    file.chmod(0o600)
    found = Proxy.of("http://proxy:3128", file)
    assert found == Proxy("proxy:3128", "north:secret")
    assert "secret" not in repr(found)
    file.write_text("no password")
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        Proxy.of("http://proxy:3128", file)
    with pytest.raises(ConfigError, match="without proxy"):
        Proxy.of(None, file)


def test_a_call_that_failed_although_the_connection_works_keeps_its_error(node, north):
    """Nothing is invented; and an answer with an incident needs no diagnosis."""
    lost = PeerUnreachable("the connection broke off", hop="target south.example")
    assert explained(lost, lambda: look(node, north, None)) is lost
    node.close()
    found = explained(lost, lambda: look(node, north, None))
    assert (found.facts["cause"], found.hop) == ("nothing-listens", lost.hop)
    answered = PeerUnreachable("it said so", incident="3f2a")
    assert explained(answered, lambda: look(node, north, None)) is answered
