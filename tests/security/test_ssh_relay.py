"""A node that can only call out is reached through `ssh -R` at a relay, which carries ciphertext."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ddib_fed.protocol.addresses import Proxy
from ddib_fed.security import tls
from ddib_fed.security.diagnosis import diagnose
from ddib_fed.security.pki import certificate_pem
from ddib_fed.v1 import decoding_pb2_grpc
from tests.e2e.harness import free_port, wait_until
from tests.node.institutions import Institution
from tests.node.listening import ASK, Listening
from tests.security.connect_proxy import proxying

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SSHD and shutil.which("ssh")), reason="needs OpenSSH's ssh and sshd"),
]
SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding remote
"""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Relay:
    """OpenSSH's server on loopback; the key may listen at one port of it and do nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.public = folder, free_port(), free_port()
        for name in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        # What docs/troubleshooting.md tells the relay's operator to write.
        key = (folder / "key.pub").read_text()
        (folder / "authorized").write_text(f'restrict,port-forwarding,permitlisten="{self.public}" {key}')
        (folder / "sshd_config").write_text(SERVER.format(port=self.port, folder=folder))

    @contextmanager
    def running(self) -> Iterator[None]:
        Path("/run/sshd").mkdir(exist_ok=True)
        command = [str(SSHD), "-D", "-e", "-f", self.folder / "sshd_config"]
        with (self.folder / "sshd.log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
            try:
                wait_until(lambda: _listens(self.port), seconds=10, what="sshd")
                yield
            finally:
                server.terminate()

    @contextmanager
    def tunnel(self, node_port: int) -> Iterator[None]:
        """What docs/troubleshooting.md tells the node's operator to run."""
        options = (
            "ExitOnForwardFailure=yes",
            "ServerAliveInterval=15",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            f"UserKnownHostsFile={self.folder}/known",
        )
        command = ["ssh", "-N", "-T", "-p", str(self.port), "-i", self.folder / "key"]
        command += [word for option in options for word in ("-o", option)]
        command += ["-R", f"{self.public}:127.0.0.1:{node_port}", f"{getpass.getuser()}@127.0.0.1"]
        with (self.folder / "ssh.log").open("w") as log, subprocess.Popen(command, stderr=log) as client:
            try:
                wait_until(lambda: _listens(self.public), seconds=15, what="the tunnel")
                yield
            finally:
                client.terminate()
                wait_until(lambda: not _listens(self.public), seconds=15, what="the end of the tunnel")


def test_a_node_behind_a_firewall_is_reached_over_ssh(tmp_path: Path) -> None:
    """Both ends check each other as without it; the relay carries TLS, and its open ends are told apart."""
    north = Institution("north.example", tmp_path / "north")
    south = Institution("south.example", tmp_path / "south")
    south.admit(north)
    (tmp_path / "relay").mkdir()
    relay = Relay(tmp_path / "relay")
    north.admit(south, address := f"127.0.0.1:{relay.public}")
    facts = {
        "server_name": "node-1.south.example",
        "pki_folder": north.pki,
        "roots_pem": certificate_pem(south.root),
    }
    with ExitStack() as stack:
        stack.enter_context(relay.running())
        node = Listening(south)
        with relay.tunnel(node.port), proxying() as recorder:
            # Through a proxy besides, which keeps what arrives at the relay's port.
            channels = tls.PeerChannels(north.pki, north.store, proxy=Proxy(recorder.address))
            stub = decoding_pb2_grpc.DecodingServiceStub(channels.get("south.example"))
            assert (
                stub.DescribeDomain(ASK, timeout=10).side.institution == "spiffe://north.example/node/node-1"
            )
            channels.close()
            assert diagnose(address, **facts).cause == "ok"
            node.close()
            closed = diagnose(address, **facts)
            carried = bytes(recorder.carried)
        gone = diagnose(address, **facts)
    assert carried.startswith(b"\x16\x03")
    assert not [word for word in (b"spiffe", b"DescribeDomain", b"grpc") if word in carried]
    assert (closed.cause, "a relay whose far end does not listen" in closed.text) == ("closed", True), closed
    assert (gone.cause, "is its tunnel up" in gone.remedy) == ("nothing-listens", True), gone
    assert threading.active_count() < 200
