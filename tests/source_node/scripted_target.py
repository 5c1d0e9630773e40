"""A target that speaks the protocol over real mTLS and does to each call what the test tells it to."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import torch
from google.protobuf.message import Message

from ddib_fed.data.points import to_npy
from ddib_fed.diffusion import gaussianity
from ddib_fed.latent import Latent
from ddib_fed.node.policy import Policy
from ddib_fed.node.server import CallInterceptor
from ddib_fed.protocol.contract import PROTOCOL, Contract, agree
from ddib_fed.protocol.latent import LatentOpener, approve
from ddib_fed.protocol.streams import assemble, file_header, stream
from ddib_fed.security import tls
from ddib_fed.v1 import common_pb2, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1.decoding_pb2 import ContractSide
from tests.node.institutions import Institution
from tests.protocol.examples import limits_of

LIMITS = limits_of(100, 10_000, 80_000, 10_000)
Items = Iterator[tuple[int, Latent]]
Responses = Iterator[pb.DecodeResponse]
Behaviour = Callable[["ScriptedTarget", pb.DecodeHeader, Items, grpc.ServicerContext], Responses]


def side(institution: str, domain: str = "checkerboards") -> ContractSide:
    return ContractSide(
        institution=institution, domain=domain, sample_kind="point", sample_shape=(2,), size_rule="none",
        value_range="unit-std", model_sha256=bytes(32), terminal_lambda=-5.0, initial_lambda=5.0,
    )  # fmt: skip


class ScriptedTarget(decoding_pb2_grpc.DecodingServiceServicer):
    """South's node."""

    def __init__(self, south: Institution, address: str = "127.0.0.1:0") -> None:
        self.south = south
        self.decodes: list[Behaviour] = []
        self.negotiation: Callable[[], object] = lambda: None
        self.forge: Callable[[Message], object] = lambda answer: None
        self.limits = LIMITS
        self.protocol = PROTOCOL
        self.domain = "checkerboards"
        self.own: ContractSide | None = None
        self.translation: Callable[[Latent], bytes] = lambda latent: to_npy(latent.data)
        self.round_trip: Callable[[Latent], Latent] = lambda latent: latent
        self.media_type: int = common_pb2.MEDIA_TYPE_NPY
        self.headers: list[pb.DecodeHeader] = []
        self.latents: list[tuple[int, Latent]] = []
        self.anchors: dict[int, common_pb2.AuditHead | None] = {}
        self.classes: dict[int, int] = {}
        self.answered = 0
        self.seen: list[dict[int, bytes]] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self.contract: Contract | None = None
        credentials = tls.ServerCredentials(south.pki, south.store).grpc
        policy = Policy(institution=south.name, roles=("target",), issuer=False)
        interceptors = (CallInterceptor(south.name, south.store, policy),)
        self.server = grpc.server(ThreadPoolExecutor(8), interceptors=interceptors)
        decoding_pb2_grpc.add_DecodingServiceServicer_to_server(self, self.server)
        self.port = self.server.add_secure_port(address, credentials)
        self.server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self.release.set()
        self.server.stop(None).wait()

    def DescribeDomain(self, request, context):
        self.negotiation()
        answer = pb.DescribeDomainResponse(protocol=self.protocol, side=self._side(), limits=self.limits)
        self.forge(answer)
        return answer

    def NegotiateContract(self, request, context):
        self.negotiation()
        terms = request.calibration if request.HasField("calibration") else None
        self.contract = agree(request.source, self._side(), self.limits, terms)
        answer = pb.NegotiateContractResponse(contract=self.contract.message, sha256=self.contract.digest)
        self.forge(answer)
        return answer

    def Decode(self, request_iterator, context):
        header = next(request_iterator).header
        self.headers.append(header)
        seen: dict[int, bytes] = {}
        self.seen.append(seen)
        behave = self.decodes.pop(0) if self.decodes else honest
        opener = LatentOpener(self.contract, max_items=header.items)

        def items() -> Items:
            for whole in assemble(request_iterator, {"latent": opener}):
                latent = Latent.from_bytes(whole.data, self.contract.sample_shape)
                seen[whole.header.item] = latent.sha256
                self.anchors[whole.header.item] = opener.anchor
                self.classes[whole.header.item] = whole.header.target_class
                self.latents.append((whole.header.item, latent))
                yield whole.header.item, latent

        self.asked.set()
        yield from behave(self, header, items(), context)

    def _side(self) -> ContractSide:
        return self.own or side(self.south.name, self.domain)

    # What behaviours are made of

    def result(self, item: int, file: bytes, seconds: float = 0.1) -> Responses:
        header = pb.DecodedHeader(item=item, file=file_header(self.media_type, file), seconds=seconds)
        return stream(pb.DecodeResponse, "result", header, file)

    def latent(self, item: int, latent: Latent) -> Responses:
        statistics = gaussianity.measure(torch.from_numpy(latent.data.copy()))
        return approve(latent, self.contract, statistics, item=item).stream(pb.DecodeResponse)

    def answer(self, header: pb.DecodeHeader, item: int, latent: Latent) -> Responses:
        """The honest answer to one item."""
        yield from self.result(item, self.translation(latent))
        if header.round_trip:
            yield from self.latent(item, self.round_trip(latent))
        self.answered += 1


def honest(target, header, items, context) -> Responses:
    for item, latent in items:
        yield from target.answer(header, item, latent)


def hang(target, header, items, context) -> Responses:
    target.release.wait(30)
    yield from ()


def fail(error: Exception) -> Behaviour:
    """End the call at once."""

    def behave(target, header, items, context) -> Responses:
        raise error
        yield

    return behave


def refuse(number: int, error: Exception) -> Behaviour:
    """Honest until item `number`, which is refused; what came after it is dropped."""

    def behave(target, header, items, context) -> Responses:
        for item, latent in items:
            if item == number:
                raise error
            yield from target.answer(header, item, latent)

    return behave


def instead(number: int, answer: Callable[[ScriptedTarget, int, Latent], Responses]) -> Behaviour:
    """Honest, but for one item."""

    def behave(target, header, items, context) -> Responses:
        for item, latent in items:
            if item == number:
                yield from answer(target, item, latent)
            else:
                yield from target.answer(header, item, latent)

    return behave
