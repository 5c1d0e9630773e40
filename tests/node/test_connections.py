"""Strangers who connect and say nothing hold a few places and a few seconds."""

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ddib_fed.node.connections import HANDSHAKE_TIMEOUT_S, InboundGuard
from ddib_fed.node.server import NodeServer
from ddib_fed.security import tls
from tests.e2e.harness import wait_until
from tests.node.institutions import Institution
from tests.node.listening import ASK, Listening
from tests.security.attacks.raw_http2 import HEALTH


@pytest.fixture
def south(tmp_path, north) -> Institution:
    made = Institution("south.example", tmp_path / "south")
    made.admit(north)
    return made


class Guarded(Listening):
    """South's server with a guard that the test lets look, and whom its interceptor tells of each caller."""

    def __init__(self, south: Institution, *, most: int) -> None:
        self.guard = InboundGuard(most, per_address=4)
        super().__init__(south, guard=self.guard)
        self.guard._port = self.port
        self.strangers: list[socket.socket] = []

    def crowd(self, count: int, host: str = "127.0.0.1") -> None:
        """So many connections that say nothing, from an address of the loopback."""
        self.guard._refresh()
        before = self.held()
        self.strangers += [
            socket.create_connection(("127.0.0.1", self.port), timeout=60, source_address=(host, 0))
            for _ in range(count)
        ]
        wait_until(lambda: (self.guard._refresh(), self.held())[1] >= before + count)

    def held(self) -> int:
        return sum(found is not None for found in self.guard._known.values())

    def close(self) -> None:
        for stranger in self.strangers:
            stranger.close()
        super().close()


@pytest.fixture
def crowded(south) -> Iterator[Guarded]:
    made = Guarded(south, most=16)
    yield made
    made.close()


def test_of_strangers_of_one_address_the_youngest_stay(crowded: Guarded) -> None:
    """The oldest beyond half of the cap end at once, those beyond an address's few after a moment; they see a close."""
    crowded.crowd(12)
    crowded.crowd(8)  # seen later: of those seen at once none is the oldest
    assert crowded.guard.look() == 12
    assert [end.recv(1) for end in crowded.strangers[:12]] == [b""] * 12
    wait_until(lambda: (crowded.guard._refresh(), crowded.held())[1] == 8)
    crowded.crowd(4)
    wait_until(lambda: (crowded.guard.look(), crowded.held())[1] == 4)
    for end in crowded.strangers[20:]:
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on its loopback")
def test_a_crowd_ends_no_stranger_of_another_address(crowded: Guarded) -> None:
    crowded.crowd(3, "127.0.0.2")
    crowded.crowd(20)
    assert crowded.guard.look() == 15
    for end in crowded.strangers[:3]:
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)


def test_whoever_made_an_authorised_call_is_no_stranger(crowded: Guarded, north: Institution) -> None:
    with crowded.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=60)
        (friend,) = crowded.guard._proven
        crowded.crowd(20)
        assert crowded.guard.look() == 12
        wait_until(lambda: (crowded.guard.look(), crowded.held())[1] == 5)
        stub.DescribeDomain(ASK, timeout=60)
        assert set(crowded.guard._proven) == {friend}


def test_a_caller_has_only_its_part_of_all_connections(crowded: Guarded, north: Institution) -> None:
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as ends:
        for who in [*[north] * 6, crowded.south]:
            channel = ends.enter_context(crowded.channel(who, options=alone))
            channel.unary_unary(HEALTH)(b"", timeout=60)
        assert crowded.guard.look() == 2
        wait_until(lambda: (crowded.guard.look(), crowded.held())[1] == 5)
        assert set(crowded.guard._proven.values()) == {north.identity.uri, crowded.south.identity.uri}


def test_a_connection_whose_calls_come_too_fast_ends_although_it_was_proven(crowded, north):
    with crowded.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=60)
        (friend,) = crowded.guard._proven
        crowded.guard.end(f"ipv4:{friend[0]}:1")
        crowded.guard.look()
        assert crowded.held() == 1
        crowded.guard.end(f"ipv4:{friend[0]}:{friend[1]}")
        wait_until(lambda: (crowded.guard.look(), crowded.held())[1] == 0)
        stub.DescribeDomain(ASK, timeout=60, wait_for_ready=True)


@pytest.mark.slow
def test_a_handshake_that_is_not_finished_ends_soon(south: Institution, north: Institution) -> None:
    """Nothing at all, half a greeting, and TLS with a good certificate but without HTTP/2: gRPC ends each of them."""
    server = NodeServer("127.0.0.1:0", tls.ServerCredentials(south.pki, south.store).grpc, [], max_streams=1)
    server.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(north.pki / "leaf.pem", north.pki / "leaf.key")
    started = time.monotonic()
    with ExitStack() as ends:
        silent, half, mute = (
            ends.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            for _ in "123"
        )
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        mute = ends.enter_context(context.wrap_socket(mute))
        for end in (silent, half, mute):
            while end.recv(1_000):
                pass
    assert time.monotonic() - started < 4 * HANDSHAKE_TIMEOUT_S
    server.stop(0)


def test_the_file_limit_is_raised_as_far_as_it_goes() -> None:
    code = (
        "import resource\n"
        "from ddib_fed.node.connections import raise_file_limit\n"
        "for hard in (2_048, 512):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))\n"
        "    print(raise_file_limit())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2048", "512"]
