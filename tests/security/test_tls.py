"""Transport: what gets a connection, what does not, and how changed files are taken up."""

import re
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

import ddib_fed
from ddib_fed.errors import ConfigError, PeerNotFound, PeerSuspended, PeerUnreachable
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.security import pki, tls
from ddib_fed.security.peers import Peer
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import decoding_pb2_grpc
from tests.node.institutions import Institution
from tests.node.listening import Listening
from tests.source_node.jobs.job_examples import Clock

ASK = pb.DescribeDomainRequest(protocol=PROTOCOL)


def refused(node: Listening, who: Institution, **overrides) -> grpc.StatusCode:
    with node.stub(who, **overrides) as stub, pytest.raises(grpc.RpcError) as error:
        stub.DescribeDomain(ASK, timeout=60)
    return error.value.code()


def test_a_server_with_another_root_or_name_gets_no_call(node: Listening, north: Institution) -> None:
    """The channel to a peer trusts that peer's root and no other, not even the own, and for one node alone."""
    assert refused(node, north, roots_pem=certificate_pem(north.root)) is grpc.StatusCode.UNAVAILABLE
    assert refused(node, north, server_name="node-2.south.example") is grpc.StatusCode.UNAVAILABLE


def test_a_server_that_accepts_tls_12_is_noticed(south: Institution) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(south.pki / "leaf.pem", south.pki / "leaf.key")
    context.load_verify_locations(south.pki / "roots.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _address = listener.accept()
            with connection, pytest.raises((ssl.SSLError, OSError)):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError, match=r"accepts TLS 1\.2"):
            tls.probe_tls12("127.0.0.1", listener.getsockname()[1])
        thread.join()


def served(node: Listening, north: Institution) -> str:
    """The certificate that the server shows to a new connection."""
    context = ssl.create_default_context(cadata=certificate_pem(node.south.root).decode())
    context.load_cert_chain(north.pki / "leaf.pem", north.pki / "leaf.key")
    with (
        socket.create_connection(("127.0.0.1", node.port)) as raw,
        context.wrap_socket(raw, server_hostname="node-1.south.example") as channel,
    ):
        return ssl.DER_cert_to_PEM_cert(channel.getpeercert(binary_form=True) or b"")


@pytest.fixture
def channels(node: Listening, north: Institution):
    clock = Clock()
    made = tls.PeerChannels(north.pki, north.store, clock=clock)
    made.clock = clock  # type: ignore[attr-defined]
    yield made
    made.close()


def works(channel: grpc.Channel) -> bool:
    try:
        decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(ASK, timeout=60)
    except (grpc.RpcError, PeerUnreachable):
        return False
    return True


@pytest.mark.parametrize("spoilt", ["open", "gone"])
def test_a_key_that_cannot_be_used_any_more_ends_no_calls(channels, north, node, spoilt):
    """A job that was accepted must not fail by a chmod: calls go on with the last good key, also to a new address."""
    key = north.pki / "leaf.key"
    if spoilt == "open":
        key.chmod(0o644)
    else:
        key.unlink()
    assert works(channels.get("south.example"))
    north.store.add(node.south.peer(f"localhost:{node.port}"), fingerprints=[], replace=True)
    assert works(channels.get("south.example"))


def other_root(tmp_path: Path) -> Institution:
    return Institution("south.example", tmp_path / "south-again")


def replace(north: Institution, peer: Peer, new: Institution) -> None:
    north.store.add(peer, fingerprints=[pki.fingerprint(new.root)], replace=True)


@pytest.mark.parametrize("retired", [False, True])
def test_a_channel_verified_by_a_root_that_was_replaced_is_closed(channels, north, node, tmp_path, retired):
    """Whoever has the key of the old root gets no further message, also on a channel that waits for its streams."""
    first = channels.get("south.example")
    assert works(first)
    if retired:
        pki.issue_to_folder(north.authority, north.pki, "node", "node-1")
        assert channels.get("south.example") is not first
    new = other_root(tmp_path)
    replace(north, new.peer(node.address), new)
    channels.refresh()
    assert not works(first)
    assert not works(channels.get("south.example"))


@pytest.mark.parametrize("how", ["removed", "withdrawn", "suspended"])
def test_the_channel_of_a_peer_that_is_gone_is_closed_at_once(channels, north, south, how):
    first = channels.get("south.example")
    assert works(first)
    if how == "removed":
        north.store.remove("south.example")
    elif how == "suspended":
        north.store.suspend("south.example")
    else:
        north.store.withdraw(south.identity)
    channels.refresh()
    assert not works(first)
    with pytest.raises(PeerSuspended if how == "suspended" else PeerNotFound):
        channels.get("south.example")
    if how == "suspended":
        north.store.resume("south.example")
        assert works(channels.get("south.example"))


# TLS 1.3 alone rests on a variable of the environment that must be set before grpc is imported.

ROOT = Path(ddib_fed.__file__).parents[1]
IMPORTS = re.compile(r"^\s*(import grpc|from grpc|from ddib_fed\.v1 import \w+_pb2_grpc)", re.MULTILINE)


def packages() -> list[str]:
    """The packages with modules that import grpc."""
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("ddib_fed", "source_node", "target_node")
        for path in (ROOT / name).rglob("*.py")
        if path.parent.name != "v1" and IMPORTS.search(path.read_text())
    }
    assert {"ddib_fed.client", "ddib_fed.security", "source_node"} <= found
    return sorted(found)


@pytest.mark.parametrize("package", packages())
def test_importing_a_package_sets_the_cipher_suites_before_grpc(package) -> None:
    """Whichever package is imported first, and whatever the environment says."""
    code = (
        f"import sys, os; import {package};"
        "assert os.environ['GRPC_SSL_CIPHER_SUITES'] == 'ECDHE-PSK-CHACHA20-POLY1305';"
        "assert 'grpc' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "GRPC_SSL_CIPHER_SUITES": "HIGH"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
