"""Who is not let in, each tried against a real node over real mutual TLS."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from ddib_fed.errors import DdibError, PeerUnknown, PeerUnreachable, PolicyDenied
from ddib_fed.node import startup
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki, tls
from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc
from tests.e2e.harness import Node, Pair, admit, ddib, free_port, moons, wait_until
from tests.e2e.translation.test_translate import TARGET, npy
from tests.security.tap.relay import Tap

pytestmark = [pytest.mark.e2e, pytest.mark.promise("identity")]


def describe(pair: Pair, folder: Path) -> decoding_pb2.DescribeDomainResponse:
    """Ask south what it is, with the certificate in `folder`; errors as a node would see them."""
    south = pair.south
    channel = tls.channel(
        f"127.0.0.1:{south.port}",
        server_name="node-1.south.example",
        pki_folder=folder,
        roots_pem=(south.config.paths.pki / "roots.pem").read_bytes(),
    )
    with channel:
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        try:
            return decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(request, timeout=10)
        except grpc.RpcError as error:
            raise from_rpc_error(error, "target south.example") from error


def stranger(pair: Pair, folder: Path) -> None:
    pki.init_node_identity(folder, "evil.example", "node-1")


def pretender(pair: Pair, folder: Path) -> None:
    pki.init_node_identity(folder, "north.example", "node-1")


def colleague(pair: Pair, folder: Path) -> None:
    pki.issue_to_folder(pki.load_authority(pair.north.config.paths.pki), folder, "node", "node-2")


def researcher(pair: Pair, folder: Path) -> None:
    pki.issue_client(pair.north.config.paths.pki, folder, "mallory")


def expired(pair: Pair, folder: Path) -> None:
    authority = pki.load_authority(pair.north.config.paths.pki)
    pki.issue_to_folder(authority, folder, "node", "node-1", now=datetime.now(UTC) - timedelta(days=2))


@pytest.mark.parametrize(
    ("who", "error"),
    [
        (stranger, PeerUnreachable),
        (pretender, PeerUnreachable),
        (colleague, PeerUnknown),
        (researcher, PolicyDenied),
        (expired, PeerUnreachable),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_is_refused(
    pair: Pair, tmp_path: Path, who: Callable[[Pair, Path], None], error: type[DdibError]
) -> None:
    """Wrong root, right name under the wrong root, wrong name under the right root, a client, an expired leaf."""
    who(pair, tmp_path / "pki")
    with pytest.raises(error):
        describe(pair, tmp_path / "pki")


def test_the_admitted_node_is_let_in(pair: Pair) -> None:
    """The same call with north's own certificate is answered: what is refused above is refused for its identity."""
    assert describe(pair, pair.north.config.paths.pki).side.domain == "checkerboards"


def test_an_admitted_peer_cannot_mint_anothers_name(fresh_pair: Pair, tmp_path: Path) -> None:
    """West is admitted at south as well; a leaf that names north but is signed by west's root is refused."""
    pair = fresh_pair
    west = Node.create(tmp_path / "west", "source", "west.example", "moons")
    peer_file = tmp_path / "west.peer"
    shown = ddib("peer", "export", "--config", west.config_path, "--out", peer_file)
    fingerprint = next(word for word in shown.split() if word.startswith("SHA256:"))
    ddib("peer", "add", peer_file, "--config", pair.south.config_path, "--fingerprint", fingerprint)
    pair.south.start()
    assert describe(pair, west.config.paths.pki).side.domain == "checkerboards"
    from ddib_fed.security.pki import Authority

    authority = pki.load_authority(west.config.paths.pki)
    forger = Authority("north.example", authority.certificate, authority.key)
    pki.issue_to_folder(forger, tmp_path / "forged", "node", "node-1")
    with pytest.raises(PeerUnreachable):
        describe(pair, tmp_path / "forged")


def test_a_removed_peer_is_refused_on_its_next_call(fresh_pair: Pair) -> None:
    """Removing a peer takes effect without a restart, and admitting it again does too."""
    pair = fresh_pair
    pair.south.start()
    mine = pair.north.config.paths.pki
    assert describe(pair, mine).side.domain == "checkerboards"
    ddib("peer", "remove", "north.example", "--config", pair.south.config_path)
    with pytest.raises(PeerUnreachable):
        describe(pair, mine)
    admit(pair.south, pair.north)
    assert describe(pair, mine).side.domain == "checkerboards"


def test_a_target_with_another_name_gets_no_latent(fresh_pair: Pair) -> None:
    """South's address answered by somebody with another certificate: the source sends nothing and says why."""
    pair = fresh_pair
    pair.south.start()
    impostor = Tap(pair.south.port, pair.north.config.paths.pki, pair.north.config.paths.pki)
    peer_file = next(pair.north.config.paths.peers.glob("*south.example*"))
    peer_file.write_text(peer_file.read_text().replace(str(pair.south.port), str(impostor.port)))
    pair.north.start()
    with pair.client() as client:
        job = client.submit([npy(moons(20))], TARGET)
        reasons = {event.reason for event in _until(client.watch(job.job_id), "wait")}
        assert "PEER_UNREACHABLE" in reasons
        client.cancel(job.job_id)
    impostor.close()
    assert not impostor.to_target


def _until(events, stage: str):  # type: ignore[no-untyped-def]
    for event in events:
        yield event
        if event.stage == stage:
            return


def test_contracts_that_differ_are_refused_field_by_field(tmp_path: Path) -> None:
    """A target with 3-D points: the job fails with the field, both values and what to do."""
    import numpy as np

    pair = Pair.create(tmp_path)
    try:
        cloud = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
        np.save(tmp_path / "checkerboards.npy", cloud)
        shutil.rmtree(pair.south.folder / "model")
        ddib(
            "model",
            "train",
            "--data",
            tmp_path / "checkerboards.npy",
            "--steps",
            20,
            "--out",
            pair.south.folder / "model",
        )
        pair.start()
        with pair.client() as client:
            job = client.submit([npy(moons(20))], TARGET)
            for _ in client.watch(job.job_id):
                pass
            error = client.get(job.job_id).failure
        assert error is not None
        assert error.reason == "CONTRACT_MISMATCH"
        assert [(d.field, d.source, d.target) for d in error.differences] == [("sample_shape", "2", "3")]
        assert error.differences[0].remedy
    finally:
        pair.stop()


def test_a_second_node_on_the_port_is_named(pair: Pair, tmp_path: Path) -> None:
    """`check` says that the port is taken, before anybody wonders."""
    other = Node.create(tmp_path / "other", "target", "other.example", "moons")
    other.edit(f"127.0.0.1:{other.port}", f"127.0.0.1:{pair.south.port}")
    problems = {finding.step: finding.problem for finding in startup.check(other.config)}
    assert "cannot be bound" in str(problems["listen"])
    other.edit(f"127.0.0.1:{pair.south.port}", f"127.0.0.1:{free_port()}")
    assert all(finding.ok for finding in startup.check(other.config))
    wait_until(lambda: pair.south.state() == "serving", seconds=5, what="south serving")
