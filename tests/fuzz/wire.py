"""What comes over the wire: messages, streams, contracts, latents, details of errors."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from google.protobuf.message import Message

from ddib_fed.errors import MessageInvalid, PeerUnreachable
from ddib_fed.latent import Latent
from ddib_fed.pacs.dicomweb import parts
from ddib_fed.protocol.addresses import TunnelRefused, read_answer
from ddib_fed.protocol.calls import from_detail, to_detail
from ddib_fed.protocol.contract import PROTOCOL, check_limits, check_side, confirm
from ddib_fed.protocol.latent import LatentOpener
from ddib_fed.protocol.streams import Announced, Assembler, file_header, open_file, stream
from ddib_fed.security.admission import parse_message
from ddib_fed.security.diagnosis import short
from ddib_fed.telemetry import parse_traceparent, trace_entries
from ddib_fed.v1 import common_pb2, decoding_pb2, translation_pb2
from tests.data_modules import picture_examples as pictures
from tests.fuzz.target import MOST, Target
from tests.protocol.examples import contract, latent, side

_STREAMS: Final = {
    0: decoding_pb2.DecodeRequest, 1: decoding_pb2.DecodeResponse, 2: translation_pb2.SubmitJobRequest,
    3: translation_pb2.FetchResultsResponse, 4: decoding_pb2.NegotiateContractRequest,
    5: decoding_pb2.DescribeDomainResponse, 6: translation_pb2.GetJobResponse,
    7: decoding_pb2.NegotiateContractResponse,
}  # fmt: skip


def message(data: bytes) -> None:
    """A message of any kind, the first byte says which, as an interceptor parses it."""
    if data:
        kind = _STREAMS[data[0] % len(_STREAMS)]
        found = parse_message(data[1:], kind.FromString)
        found.SerializeToString()


def _messages() -> list[bytes]:
    decode = decoding_pb2.DecodeHeader(
        contract_sha256=bytes(32), request_id="r", solver=common_pb2.SolverSettings(evaluations=8), items=2
    )
    made = contract()
    samples: list[tuple[int, Any]] = [
        (0, decoding_pb2.DecodeRequest(header=decode)),
        (0, decoding_pb2.DecodeRequest(data=b"data")),
        (
            1,
            decoding_pb2.DecodeResponse(
                progress=decoding_pb2.DecodeProgress(item=1, stage="decode", steps=4)
            ),
        ),
        (2, translation_pb2.SubmitJobRequest(data=b"x")),
        (4, decoding_pb2.NegotiateContractRequest(source=made.source)),
        (7, _answer()),
    ]
    return [bytes([number]) + each.SerializeToString() for number, each in samples]


def assembled(data: bytes) -> None:
    """A stream: records of a length (two bytes), a message each, into the assembler of a Decode call."""
    made = contract()
    opener = LatentOpener(made, max_items=4)
    assembler = Assembler({"latent": opener, "result": _open_result})
    for record in _records(data):
        whole = assembler.feed(parse_message(record, decoding_pb2.DecodeResponse.FromString))
        if whole is not None and whole.kind == "latent":
            Latent.from_bytes(whole.data, made.sample_shape, sha256=whole.header.tensor.sha256)
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
        tensor=common_pb2.TensorHeader(shape=(20, 2), size_bytes=160, sha256=sent.sha256),
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
    answer = parse_message(data, decoding_pb2.NegotiateContractResponse.FromString)
    confirm(answer, source=side(), target_institution="south.example")


def _answer() -> Message:
    made = contract()
    return decoding_pb2.NegotiateContractResponse(contract=made.message, sha256=made.digest)


def described(data: bytes) -> None:
    """A peer's half of a contract."""
    answer = parse_message(data, decoding_pb2.DescribeDomainResponse.FromString)
    check_side(answer.side)
    check_limits(answer.limits)


def _description() -> bytes:
    made = contract()
    return decoding_pb2.DescribeDomainResponse(
        protocol=PROTOCOL, side=made.target, limits=made.limits
    ).SerializeToString()


def numbers(data: bytes) -> None:
    """The numbers of a latent."""
    Latent.from_bytes(data, (2,))


def error_detail(data: bytes) -> None:
    """What a node says of an error, in trailing metadata."""
    found = from_detail(data, "target south.example")
    if found is not None:
        str(found)


def _details() -> list[bytes]:
    from ddib_fed.errors import ContractMismatch, Difference

    error = ContractMismatch("x", differences=(Difference("field", "1", "2", "remedy"),), facts={"a": "b"})
    return [to_detail(error, "south.example", "incident1").SerializeToString()]


def traceparent(data: bytes) -> None:
    """Where a call belongs in a trace, in its metadata; what is believed is written again as it came."""
    found = parse_traceparent(text := data.decode("latin-1"))
    if found is None:
        raise MessageInvalid("no traceparent")
    assert trace_entries(found) == {"metadata": (("traceparent", text),)}


def _traceparents() -> list[bytes]:
    return [f"00-{7:032x}-{9:016x}-{flags}".encode() for flags in ("00", "01", "ff")]


def proxy_answer(data: bytes) -> None:
    """What a proxy answers to CONNECT."""
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        with suppress(BlockingIOError):
            far.send(data)
        far.shutdown(socket.SHUT_WR)
        try:
            read_answer(near, 60.0)
        except TunnelRefused as error:
            raise PeerUnreachable(f"{error.code} {short(error.words)}") from error


def multipart(data: bytes) -> None:
    """A study of DICOMweb, which comes in pieces of the length that the first byte says."""
    size, data = data[:1][0] + 1 if data else 1, data[1:]
    try:
        for _ in parts(
            (data[at : at + size] for at in range(0, len(data), size)), "multipart/related; boundary=XYZ"
        ):
            pass
    except ValueError as error:
        raise MessageInvalid(str(error)) from error


TARGETS: Final[Mapping[str, Target]] = {
    "multipart": Target(multipart, lambda: [b"\x10--XYZ\r\nA: b\r\n\r\nbody\r\n--XYZ\r\n\r\n\r\n--XYZ--"]),
    "message": Target(message, _messages),
    "stream": Target(assembled, _streams),
    "agreement": Target(agreed, lambda: [_answer().SerializeToString()]),
    "description": Target(described, lambda: [_description()]),
    "latent": Target(numbers, lambda: [latent(8).to_bytes()]),
    "error-detail": Target(error_detail, _details),
    "traceparent": Target(traceparent, _traceparents),
    "proxy-answer": Target(
        proxy_answer, lambda: [b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"], slow=True
    ),
}
