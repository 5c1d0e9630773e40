"""Every parser of bytes that come from elsewhere, as a function of bytes that may fail in one way only.

`run` parses and uses what was parsed; it may raise a `DdibError`, and nothing else. tests/fuzz/test_targets.py tries
each with Hypothesis, `python -m tests.fuzz.run` with atheris, which watches what the code does with its input.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf.message import Message
from PIL import Image

from ddib_fed.bridge.calibration.aggregates import read_aggregate
from ddib_fed.bridge.calibration.files import read_calibration
from ddib_fed.bridge.records.translation_record import Translation
from ddib_fed.errors import DdibError
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import load_bundle, make_bundle, save_bundle
from ddib_fed.models.bundle_files import manifest_text, parse_manifest, read_weights
from ddib_fed.models.importers.checkpoints import read_checkpoint, read_safetensors
from ddib_fed.models.tuned import parse_tuned
from ddib_fed.rpc.error_details import from_detail, to_detail
from ddib_fed.samples.images import ImageLimits, decode_image
from ddib_fed.samples.points import parse_npy, to_npy
from ddib_fed.trust import pki
from ddib_fed.trust.audit.verification import verify as verify_audit
from ddib_fed.trust.calibrations.signing import parse_calibration, parse_signed
from ddib_fed.trust.certificates import (
    certificate_pem,
    issue_leaf,
    new_authority,
    new_key,
    parse_certificates,
)
from ddib_fed.trust.enrolment import make_request, read_request
from ddib_fed.trust.identity import Identity, verify_peer_certificate
from ddib_fed.trust.peers.admission import parse_message
from ddib_fed.trust.peers.file import Peer, parse_peer
from ddib_fed.trust.peers.withdrawn import parse_withdrawn
from ddib_fed.v1 import common_pb2, decoding_pb2, translation_pb2
from ddib_fed.wire.contracts.agreement import confirm
from ddib_fed.wire.contracts.contract import ContractLimits, ContractSide
from ddib_fed.wire.latent import LatentOpener
from ddib_fed.wire.mapping import from_message, to_message
from ddib_fed.wire.streams.chunks import Announced, Assembler, file_header, open_file, stream
from ddib_fed.wire.streams.frames import reading
from source_node.samples import Given
from tests.models import examples as models
from tests.samples import picture_examples as pictures
from tests.trust.calibrations.examples import calibration
from tests.wire.examples import contract, latent, side

LIMITS: Final = ImageLimits(max_bytes=1 << 20, max_pixels=64 * 64)
MOST: Final = 1 << 16
"""Bytes of an input."""
NOW: Final = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Target:
    """One parser.

    Attributes:
        run: Parses.
        seeds: Inputs to begin with, made when they are asked for; at least one of them is valid.
        slow: Whether it takes about a millisecond, so that fewer executions are tried in the suite.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    slow: bool = False


@contextmanager
def as_file(data: bytes, name: str) -> Iterator[Path]:
    """The input as a file, for parsers that take a path."""
    with tempfile.TemporaryDirectory(
        prefix="ddib-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as at:
        path = Path(at) / name
        path.write_bytes(data)
        yield path


# The wire

_STREAMS: Final = {
    0: decoding_pb2.DecodeRequest,
    1: decoding_pb2.DecodeResponse,
    2: translation_pb2.SubmitJobRequest,
    3: translation_pb2.FetchResultsResponse,
    4: decoding_pb2.NegotiateContractRequest,
    5: decoding_pb2.DescribeDomainResponse,
    6: translation_pb2.GetJobResponse,
    7: decoding_pb2.NegotiateContractResponse,
}


def message(data: bytes) -> None:
    """A message of any kind, the first byte says which, as an interceptor parses it."""
    if data:
        kind = _STREAMS[data[0] % len(_STREAMS)]
        found = parse_message(data[1:], reading(kind.FromString), strict=True)
        found.SerializeToString()


def _messages() -> list[bytes]:
    decode = decoding_pb2.DecodeHeader(
        contract_sha256=bytes(32), request_id="r", solver=common_pb2.SolverSettings(evaluations=8), items=2
    )
    made = contract()
    samples: list[tuple[int, Any]] = [
        (0, decoding_pb2.DecodeRequest(header=decode)),
        (0, decoding_pb2.DecodeRequest(chunk=common_pb2.Chunk(index=1, data=b"data"))),
        (
            1,
            decoding_pb2.DecodeResponse(
                progress=decoding_pb2.DecodeProgress(item=1, stage="decode", steps=4)
            ),
        ),
        (2, translation_pb2.SubmitJobRequest(trailer=common_pb2.Trailer(chunks=3))),
        (4, decoding_pb2.NegotiateContractRequest(source=to_message(made.source, decoding_pb2.ContractSide))),
        (7, _answer()),
    ]
    return [bytes([number]) + each.SerializeToString() for number, each in samples]


def assembled(data: bytes) -> None:
    """A stream: records of a length (two bytes), a message each, into the assembler of a Decode call."""
    made = contract()
    opener = LatentOpener(made, max_items=4)
    assembler = Assembler({"latent": opener, "result": _open_result})
    parse = reading(decoding_pb2.DecodeResponse.FromString)
    assert parse is not None
    for record in _records(data):
        whole = assembler.feed(parse_message(record, parse, strict=True))
        if whole is not None and whole.landed is not None:
            Latent.from_bytes(
                whole.landed, made.sample_shape, made.wire_type, sha256=whole.header.tensor.sha256
            )
    assembler.end()


def _open_result(header: decoding_pb2.DecodedHeader) -> Announced:
    return open_file(header.file, max_bytes=MOST, accepted={common_pb2.MEDIA_TYPE_PNG})


def _records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def _streams() -> list[bytes]:
    made, sent = contract(), latent(20)
    header = decoding_pb2.LatentHeader(
        item=0, contract_sha256=made.digest,
        tensor=common_pb2.TensorHeader(dtype="DATA_TYPE_FLOAT32", shape=(20, 2), size_bytes=160, sha256=sent.sha256),
    )  # fmt: skip
    file = pictures.png_of(pictures.noise(4, 4, 1))
    result = decoding_pb2.DecodedHeader(item=0, file=file_header(common_pb2.MEDIA_TYPE_PNG, file))
    parts = [
        *stream(decoding_pb2.DecodeResponse, "result", result, file),
        *stream(decoding_pb2.DecodeResponse, "latent", header, sent.wire()),
    ]
    records = [part.SerializeToString() for part in parts]
    return [b"".join(len(record).to_bytes(2, "little") + record for record in records)]


def agreed(data: bytes) -> None:
    """A target's answer to a proposal, and what it says of itself."""
    answer = parse_message(data, decoding_pb2.NegotiateContractResponse.FromString, strict=True)
    confirm(answer, source=side(), target_institution="south.example")


def _answer() -> Message:
    made = contract()
    return decoding_pb2.NegotiateContractResponse(
        contract=to_message(made, decoding_pb2.Contract), sha256=made.digest
    )


def described(data: bytes) -> None:
    """A peer's half of a contract."""
    answer = parse_message(data, decoding_pb2.DescribeDomainResponse.FromString, strict=True)
    from_message(answer.side, ContractSide)
    from_message(answer.limits, ContractLimits)


def _description() -> bytes:
    made = contract()
    return decoding_pb2.DescribeDomainResponse(
        versions=[common_pb2.ProtocolVersion(major=1, minor=4)],
        side=to_message(made.target, decoding_pb2.ContractSide),
        limits=to_message(made.limits, decoding_pb2.ContractLimits),
    ).SerializeToString()


def numbers(data: bytes) -> None:
    """The numbers of a latent, in each type."""
    for dtype in ("float32", "float16", "bfloat16"):
        try:
            Latent.from_bytes(data, (2,), dtype)
        except DdibError:
            continue


def error_detail(data: bytes) -> None:
    """What a node says of an error, in trailing metadata."""
    found = from_detail(data, "target south.example")
    if found is not None:
        str(found)


def _details() -> list[bytes]:
    from ddib_fed.errors import ContractMismatch, Difference

    error = ContractMismatch("x", differences=(Difference("field", "1", "2", "remedy"),), facts={"a": "b"})
    return [to_detail(error, "south.example", "incident1").SerializeToString()]


# Files of clients and peers


def picture(data: bytes) -> None:
    """PNG, JPEG, TIFF or .npy of a client."""
    decode_image(data, LIMITS)


def _png() -> list[bytes]:
    grey, colour, deep = (
        pictures.noise(8, 9, 1), pictures.noise(7, 5, 3), pictures.noise(6, 6, 1, "uint16"),
    )  # fmt: skip
    interlaced = io.BytesIO()
    Image.fromarray(colour).save(interlaced, "PNG", optimize=True)
    return [pictures.png_of(each) for each in (grey, colour, deep)] + [interlaced.getvalue()]


def _jpeg() -> list[bytes]:
    return [pictures.saved(pictures.noise(16, 17, channels), "JPEG") for channels in (1, 3)]


def _tiff() -> list[bytes]:
    made = [pictures.tiff_of(pictures.noise(8, 9, 3)), pictures.tiff_of(pictures.noise(8, 9, 1, "uint16"))]
    file = io.BytesIO()
    Image.fromarray(pictures.noise(8, 8, 3)).save(file, "TIFF", compression="tiff_lzw")
    return [*made, file.getvalue()]


def _npy() -> list[bytes]:
    return [pictures.npy_of(pictures.noise(8, 9, 3)), pictures.npy_of(np.zeros((4, 4), np.float32))]


def points(data: bytes) -> None:
    """Points of a client, or of a peer's answer."""
    parse_npy(data, max_bytes=MOST, max_points=10_000, dim=2)


def decoded_file(data: bytes) -> None:
    """A decoded file of the spool."""
    Given.from_bytes(data, "points 2")


def _given() -> list[bytes]:
    array = np.zeros((3, 2), np.float32)
    return [Given(array, array).to_bytes("points 2")]


# Models


def manifest(data: bytes) -> None:
    """manifest.json of a bundle."""
    parse_manifest(data, "a bundle")


@cache
def _bundle() -> Any:
    return make_bundle(models.manifest(), models.state())


def weights(data: bytes) -> None:
    """model.safetensors of a bundle."""
    read_weights(data, "a bundle")


def _weights() -> list[bytes]:
    import safetensors.numpy

    few = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(0, np.float16), "c": np.ones((), np.int64)}
    return [safetensors.numpy.save(few)]


def checkpoint_safetensors(data: bytes) -> None:
    """A safetensors file that is imported."""
    with as_file(data, "model.safetensors") as path:
        read_safetensors(path)


def checkpoint_pickle(data: bytes) -> None:
    """A checkpoint of somebody else's, which is a pickle: read with weights alone."""
    with as_file(data, "model.pt") as path:
        read_checkpoint(path)


def _checkpoints() -> list[bytes]:
    import torch

    made = []
    for new in (True, False):
        file = io.BytesIO()
        torch.save({"a": torch.zeros(2, 3)}, file, _use_new_zipfile_serialization=new)
        made.append(file.getvalue())
    return made


def bundle_folder(data: bytes) -> None:
    """A whole bundle: a manifest and weights, divided by a line of dashes."""
    first, _, second = data.partition(b"\n----\n")
    with as_file(first, "manifest.json") as path:
        (path.parent / "model.safetensors").write_bytes(second)
        load_bundle(path.parent)


def _bundles() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_bundle(path, models.manifest(), models.state())
        return [
            (path / "manifest.json").read_bytes() + b"\n----\n" + (path / "model.safetensors").read_bytes()
        ]


def steps(data: bytes) -> None:
    """steps.json beside a model."""
    parse_tuned(data, "0" * 64, "a bundle")


def _steps() -> list[bytes]:
    shipped = Path(__file__).parents[2] / "ddib_fed" / "models" / "pretrained"
    return [path.read_bytes() for path in sorted(shipped.glob("*/steps.json"))[:2]] or [b"{}"]


# Trust


@cache
def _north() -> pki.Authority:
    return new_authority("north.example", now=NOW)


def certificate(data: bytes) -> None:
    """A caller's certificate."""
    verify_peer_certificate(data, pins={"north.example": (_north().certificate,)}, now=NOW)


def _certificates() -> list[bytes]:
    leaf = issue_leaf(_north(), "node", "node-1", public_key=new_key().public_key(), now=NOW)
    return [certificate_pem(leaf), certificate_pem(_north().certificate)]


def certificates(data: bytes) -> None:
    """A file of roots."""
    parse_certificates(data, "roots.pem")


def request(data: bytes) -> None:
    """A request for a certificate."""
    read_request(data)


def _requests() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [make_request(Path(folder), Identity("north.example", "node", "node-2"))]


def peer(data: bytes) -> None:
    """A peer file."""
    parse_peer(data, "a file")


def _peers() -> list[bytes]:
    name = Identity("north.example", "node", "node-1")
    return [Peer("north.example", name, "north.example:7443", (_north().certificate,)).to_bytes()]


def withdrawn(data: bytes) -> None:
    """The list of withdrawn identities."""
    parse_withdrawn(data, "a list")


def signed(data: bytes) -> None:
    """A calibration with its signatures."""
    parse_signed(data, "a calibration")


def proposed(data: bytes) -> None:
    """A calibration that a peer proposes."""
    parse_calibration(data, "a calibration")


def _calibrations() -> list[bytes]:
    return [calibration().canonical]


def calibration_file(data: bytes) -> None:
    """A calibration that somebody was given as a file."""
    with as_file(data, "calibration.json") as path:
        read_calibration(path)


def aggregate(data: bytes) -> None:
    """An aggregate that a peer published."""
    read_aggregate(data)


def _aggregates() -> list[bytes]:
    from ddib_fed.bridge.calibration.aggregates import make_aggregate
    from ddib_fed.models.normalisation import Normalisation

    drawn = np.random.default_rng(0).uniform(-1, 1, (220, 1, 4, 4)).astype(np.float32)
    made = make_aggregate(drawn, Normalisation(std=0.5), "drawings", generator=np.random.default_rng(1))
    return [made.model_dump_json().encode()]


def audit(data: bytes) -> None:
    """An audit log."""
    with as_file(data, "audit.jsonl") as path:
        verify_audit(path)


def record(data: bytes) -> None:
    """The record of a translation beside a result."""
    with as_file(data, "a.json") as path:
        Translation.read(path)


def _audits() -> list[bytes]:
    from ddib_fed.trust.audit.log import AuditLog

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        for number in range(3):
            AuditLog(path).write("act", number=number)
        return [path.read_bytes()]


def _records_json() -> list[bytes]:
    return [json.dumps({"format": 1, "job_id": "x", "samples": 3, "solver": {"solver": "unipc"}}).encode()]


TARGETS: Final[Mapping[str, Target]] = {
    "message": Target(message, _messages),
    "stream": Target(assembled, _streams),
    "agreement": Target(agreed, lambda: [_answer().SerializeToString()]),
    "description": Target(described, lambda: [_description()]),
    "latent": Target(numbers, lambda: [latent(8).to_bytes()]),
    "error-detail": Target(error_detail, _details),
    "png": Target(picture, _png),
    "jpeg": Target(picture, _jpeg, slow=True),
    "tiff": Target(picture, _tiff, slow=True),
    "npy-picture": Target(picture, _npy),
    "npy-points": Target(points, lambda: [to_npy(np.zeros((5, 2), np.float32))]),
    "spool": Target(decoded_file, _given),
    "manifest": Target(manifest, lambda: [manifest_text(_bundle().manifest)]),
    "weights": Target(weights, _weights),
    "safetensors": Target(checkpoint_safetensors, _weights, slow=True),
    "pickle": Target(checkpoint_pickle, _checkpoints, slow=True),
    "bundle": Target(bundle_folder, _bundles, slow=True),
    "steps": Target(steps, _steps),
    "certificate": Target(certificate, _certificates),
    "roots": Target(certificates, _certificates),
    "request": Target(request, _requests),
    "peer-file": Target(peer, _peers),
    "withdrawn": Target(withdrawn, lambda: [b"spiffe://north.example/client/alice # lost\n\n"]),
    "signed-calibration": Target(signed, _calibrations),
    "calibration": Target(proposed, _calibrations),
    "calibration-file": Target(calibration_file, _calibrations, slow=True),
    "aggregate": Target(aggregate, _aggregates),
    "audit-log": Target(audit, _audits, slow=True),
    "record": Target(record, _records_json, slow=True),
}
