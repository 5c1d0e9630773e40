"""Who is not let in at running nodes; `tests.security.test_impostors` tries every identity with every call."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest

from ddib_fed.errors import PeerUnreachable
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki, tls
from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc
from tests.e2e.harness import Node, Pair, admit, ddib, moons
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


def test_an_admitted_peer_cannot_mint_anothers_name(fresh_pair: Pair, tmp_path: Path) -> None:
    """West is admitted at south as well; a leaf that names north but is signed by west's root is refused."""
    pair = fresh_pair
    west = Node.create(tmp_path / "west", "source", "west.example", "moons")
    admit(pair.south, west)
    pair.south.start()
    assert describe(pair, west.config.paths.pki).side.domain == "checkerboards"
    authority = pki.load_authority(west.config.paths.pki)
    forger = pki.Authority("north.example", authority.certificate, authority.key)
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
    pair.dial(impostor.port)
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
    pair = Pair.create(tmp_path)
    try:
        cloud = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
        np.save(tmp_path / "checkerboards.npy", cloud)
        shutil.rmtree(pair.south.folder / "model")
        ddib("model", "train", "--data", tmp_path / "checkerboards.npy", "--steps", 20,
             "--out", pair.south.folder / "model")  # fmt: skip
        pair.start()
        with pair.client() as client:
            job = client.submit([npy(moons(20))], TARGET)
            for _ in client.watch(job.job_id):
                pass
            error = client.get(job.job_id).error
        assert error is not None
        assert error.reason == "CONTRACT_MISMATCH"
        assert [(d.field, d.source, d.target) for d in error.differences] == [("sample_shape", "2", "3")]
        assert error.differences[0].remedy
    finally:
        pair.stop()
