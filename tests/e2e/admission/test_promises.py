"""The promises that are about what crosses and who gets in, proven on real processes."""

import json
import socket
import ssl
from pathlib import Path

import grpc
import numpy as np
import pytest

from ddib_fed import Request
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.messages import limits_of
from ddib_fed.security import tls
from ddib_fed.testing import TwoNodes, ddib
from ddib_fed.v1 import calibration_pb2, decoding_pb2, decoding_pb2_grpc
from tests.client.scripted_source import TARGET, npy
from tests.e2e.harness import dial, find_any, moons, weight_windows
from tests.security.tap.relay import Tap

pytestmark = pytest.mark.e2e


# Eight float32 numbers in a row: no accident has them twice.
WINDOW = 32


def windows(array: np.ndarray) -> list[bytes]:
    data = np.ascontiguousarray(array, dtype="<f4").tobytes()
    starts = range(0, max(1, len(data) - WINDOW), max(WINDOW, len(data) // 20 // 4 * 4))
    return [data[start : start + WINDOW] for start in starts if len(data[start : start + WINDOW]) == WINDOW]


@pytest.mark.promise("latents")
def test_no_message_can_carry_a_weight_or_a_training_picture() -> None:
    """The only fields of bytes between the nodes are digests and chunks of what a header announced."""
    fields: set[str] = set()

    def walk(descriptor: object, seen: set[str]) -> None:
        for field in descriptor.fields:  # type: ignore[attr-defined]
            if field.type == field.TYPE_BYTES:
                fields.add(field.full_name)
            if field.message_type is not None and field.message_type.full_name not in seen:
                walk(field.message_type, seen | {field.message_type.full_name})

    for method in decoding_pb2.DESCRIPTOR.services_by_name["DecodingService"].methods:
        walk(method.input_type, set())
        walk(method.output_type, set())
    assert {name for name in fields if not name.endswith("sha256")} == {
        "ddib_fed.v1.DecodeRequest.data",
        "ddib_fed.v1.DecodeResponse.data",
    }


@pytest.mark.promise("latents")
def test_no_message_of_a_calibration_is_large_enough_for_pictures() -> None:
    """Its fields of bytes are bounded, and the receiver parses each as one object of bounded numbers."""
    service = calibration_pb2.DESCRIPTOR.services_by_name["CalibrationService"]
    messages = {kind for method in service.methods for kind in (method.input_type, method.output_type)}
    messages |= {field.message_type for kind in messages for field in kind.fields if field.message_type}
    bounds = {
        f"{kind.name}.{each.field.name}": each.high
        for kind in messages
        for each in limits_of(kind).values()
        if each.field.type == each.field.TYPE_BYTES
    }
    assert bounds == {
        "GetAggregateResponse.aggregate": 64 << 10,
        "GetUnitsResponse.units": 4 << 10,
        "SignCalibrationRequest.calibration": 16 << 10,
        "CalibrationSignature.signature": 256,
    }


@pytest.mark.promise("latents")
def test_neither_folder_holds_the_other_side(pair: TwoNodes) -> None:
    """After translations, no file of one institution contains the other's weights or what its manifest says of them."""
    with pair.client() as client:
        assert [*client.translate([npy(moons(20))], TARGET, Request(cycle=True))]
    for here, there in ((pair.source, pair.target), (pair.target, pair.source)):
        bundle = there.config.paths.bundle
        manifest = json.loads((bundle / "manifest.json").read_text())
        foreign = weight_windows(bundle)
        foreign += [manifest["weights_sha256"].encode(), bytes.fromhex(manifest["weights_sha256"])]
        assert not find_any(foreign, here.folder)
    digest = json.loads((pair.source.config.paths.bundle / "manifest.json").read_text())["digest"]
    assert not find_any([digest.encode(), bytes.fromhex(digest)], pair.target.folder)


def handshake(port: int, context: ssl.SSLContext) -> str | None:
    """The TLS version that the port agrees to."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return secure.version()


@pytest.mark.promise("identity")
def test_tls_1_2_is_refused_and_1_3_is_spoken(pair: TwoNodes) -> None:
    """The admitted node's certificate is taken over TLS 1.3, and gets no connection over TLS 1.2."""
    modern, old = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
    mine = pair.source.config.paths.pki
    for context in (modern, old):
        context.load_cert_chain(mine / "leaf.pem", mine / "leaf.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(pair.target.port, modern) == "TLSv1.3"
    # gRPC closes without an alert; whether that is an end or a reset is a matter of timing.
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        handshake(pair.target.port, old)


@pytest.mark.promise("identity")
def test_plaintext_gets_no_answer(pair: TwoNodes) -> None:
    """HTTP/2 without TLS is not answered with HTTP/2."""
    with socket.create_connection(("127.0.0.1", pair.target.port), timeout=60) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
        try:
            answer = plain.recv(1024)
        except OSError:
            answer = b""
    assert answer[3:4] != b"\x04"


def described(pair: TwoNodes, folder: Path) -> bool:
    """Whether south says what it is to a caller with the certificate in `folder`."""
    south = pair.target
    with tls.channel(
        f"127.0.0.1:{south.port}",
        server_name="node-1.south.example",
        pki_folder=folder,
        roots_pem=(south.config.paths.pki / "roots.pem").read_bytes(),
    ) as channel:
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        try:
            decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(request, timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return True


@pytest.mark.promise("identity")
def test_a_removed_peer_is_refused_on_its_next_call(fresh_pair: TwoNodes) -> None:
    """Removing a peer takes effect without a restart, and admitting it again does too."""
    fresh_pair.target.start()
    mine = fresh_pair.source.config.paths.pki
    assert described(fresh_pair, mine)
    ddib("peer", "remove", "north.example", "--config", fresh_pair.target.config_path)
    assert not described(fresh_pair, mine)
    fresh_pair.target.admit(fresh_pair.source)
    assert described(fresh_pair, mine)


@pytest.mark.promise("identity")
def test_a_target_with_another_name_gets_no_latent(fresh_pair: TwoNodes) -> None:
    """South's address answered by somebody with another certificate: the source sends nothing and says why."""
    pair = fresh_pair
    pair.target.start()
    impostor = Tap(pair.target.port, pair.source.config.paths.pki, pair.source.config.paths.pki)
    dial(pair, impostor.port)
    pair.source.start()
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
