"""Who connects without a code costs the side that waits a moment, and what is dialled is reached as configured."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ddib_fed.errors import PeerUnreachable
from ddib_fed.protocol.addresses import Proxy
from ddib_fed.security.pairing import MAGIC, MAX_FRAME, dial
from tests.cli.client.answers import listening, tls
from tests.node.institutions import Institution
from tests.security.network.connect_proxy import proxying
from tests.security.pairing.sides import CODE, OTHER, Side, Waiting


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        MAGIC,
        MAGIC + b"\x00\x00\x00\x21" + b"A" * 33,
        MAGIC + (MAX_FRAME + 1).to_bytes(4, "big"),
        b"ddib-pair/9\n",
    ],
    ids=["nothing", "HTTP", "a greeting", "no point of the curve", "a long frame", "another release"],
)
def test_connections_without_a_code_use_nothing_up(
    north: Side, south: Side, waiting: Waiting, sent: bytes
) -> None:
    """A scan of ports cannot stop two operators; the listener tells its own of it."""
    host, port = waiting.address.split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(sent)
    dial(waiting.address, CODE, north)
    assert waiting.result.result(20).mutual
    assert len(waiting.strangers) == 1
    assert south.admitted == ["north.example"]


def test_the_configured_proxy_leads_to_the_side_that_waits(north: Side, waiting: Waiting) -> None:
    """What it carries is sealed or proves nothing; one that opens no tunnel is named."""
    with (
        proxying(answer="403 Forbidden") as closed,
        pytest.raises(PeerUnreachable, match="answered 403") as caught,
    ):
        dial(waiting.address, CODE, north, proxy=Proxy(closed.address))
    assert "ddib pair --listen" not in caught.value.hint
    with proxying() as proxy:
        dial(waiting.address, CODE, north, proxy=Proxy(proxy.address))
        assert proxy.asked == [waiting.address]
        assert waiting.result.result(
            20
        ).mutual  # while the proxy is there: the dialler's last word is on its way
        assert b"CERTIFICATE" not in proxy.carried


def test_a_message_without_a_proof_tests_no_code(north: Side, waiting: Waiting) -> None:
    """Whoever leaves before the proof has learned nothing: the listener shows its own only after it."""
    from spake2 import SPAKE2_A

    host, port = waiting.address.split(":")
    message = SPAKE2_A(OTHER.encode()).start()
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(MAGIC + len(message).to_bytes(4, "big") + message)
        answer = b""
        while len(answer) < len(MAGIC) + 4 + len(message):
            answer += stranger.recv(100)
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.recv(1)
    dial(waiting.address, CODE, north)
    assert waiting.result.result(20).mutual


def test_a_node_that_serves_is_told_from_one_that_pairs(north: Side, tmp_path: Path) -> None:
    """It speaks TLS: another port is needed."""
    folder = Institution("south.example", tmp_path).pki
    with (
        listening(tls(folder / "leaf.pem", folder / "leaf.key")) as address,
        pytest.raises(PeerUnreachable, match="a node serves") as caught,
    ):
        dial(address, CODE, north)
    assert "--at" in caught.value.hint
