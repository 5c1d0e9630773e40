"""Turns a peer's DecodingService into three verbs: describe, negotiate, decode.

Everything that the peer answers is checked before it is used; its errors come out as this project's, with the peer as
the hop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import grpc

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import ContractMismatch, DomainNotFound, MessageInvalid
from ddib_fed.node import tls
from ddib_fed.node.batching import Control
from ddib_fed.node.errors_wire import from_rpc_error
from ddib_fed.node.settings import settings_message
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc
from ddib_fed.wire.agreement import confirm
from ddib_fed.wire.chunks import Announced, Assembler, Whole, open_file
from ddib_fed.wire.contract import Contract, ContractSide
from ddib_fed.wire.latent import ApprovedLatent, Latent, LatentOpener
from ddib_fed.wire.version import versions_to_pb

UNARY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the peer is with an item."""

    item: int
    stage: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """One item from the peer: the translation's file, and its latent again when that was asked for."""

    item: int
    file: bytes
    seconds: float
    sent_bytes: int
    round_trip: Latent | None


class DecodeCall:
    """One Decode call: iterate over what comes back; `cancel` from any thread."""

    def __init__(
        self,
        call: grpc.CallIterator[decoding_pb2.DecodeResponse],
        contract: Contract,
        *,
        round_trip: bool,
        items: int,
        sent: dict[int, int],
        max_file_bytes: int,
        hop: str,
    ) -> None:
        self._call = call
        self._contract = contract
        self._round_trip = round_trip
        self._sent = sent
        self._hop = hop
        self._result: tuple[decoding_pb2.DecodedHeader, bytes] | None = None
        self._assembler = Assembler(
            {"result": _open_result(max_file_bytes), "latent": LatentOpener(contract, max_items=items)}
        )

    def cancel(self) -> None:
        """End the call; harmless when it has ended."""
        self._call.cancel()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Progress | Decoded]:
        try:
            for message in self._call:
                if message.WhichOneof("message") == "progress":
                    progress = message.progress
                    yield Progress(progress.item, progress.stage[:16], progress.step, progress.steps)
                    continue
                whole = self._assembler.feed(message)
                decoded = self._take(whole) if whole is not None else None
                if decoded is not None:
                    yield decoded
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._hop) from error
        self._assembler.end()
        if self._result is not None:
            raise MessageInvalid("the peer ended before the latent of its last result", hop=self._hop)

    def _take(self, whole: Whole) -> Decoded | None:
        """A finished item, once its last part is there."""
        if whole.kind == "result":
            self._known(whole.header.item)
            if self._result is not None:
                raise MessageInvalid("two results where a latent was due", hop=self._hop)
            if self._round_trip:
                self._result = (whole.header, whole.data)
                return None
            return self._decoded(whole.header, whole.data, None)
        if self._result is None or whole.header.item != self._result[0].item:
            raise MessageInvalid("a latent without its result", hop=self._hop)
        (header, file), self._result = self._result, None
        return self._decoded(header, file, Latent.from_bytes(whole.data, self._contract.sample_shape))

    def _decoded(self, header: decoding_pb2.DecodedHeader, file: bytes, latent: Latent | None) -> Decoded:
        sent = self._sent.pop(header.item)
        return Decoded(header.item, file, header.seconds, sent, latent)

    def _known(self, item: int) -> None:
        if item not in self._sent:
            raise MessageInvalid(f"a result for item {item}, which was not sent", hop=self._hop)


def _open_result(max_bytes: int) -> Callable[[decoding_pb2.DecodedHeader], Announced]:
    def opener(header: decoding_pb2.DecodedHeader) -> Announced:
        return open_file(header.file, max_bytes=max_bytes, accepted={common_pb2.MEDIA_TYPE_NPY})

    return opener


class Remote:
    """One admitted peer."""

    def __init__(self, institution: str, channel: grpc.Channel, *, max_file_bytes: int) -> None:
        self.institution = institution
        self.hop = f"target {institution}"
        self._stub = decoding_pb2_grpc.DecodingServiceStub(channel)
        self._max_file_bytes = max_file_bytes

    def describe(self, timeout_s: float = UNARY_TIMEOUT_S) -> ContractSide:
        """What the peer decodes to.

        Raises:
            DdibError: As the peer says, or PeerUnreachable.
        """
        request = decoding_pb2.DescribeDomainRequest(versions=versions_to_pb())
        try:
            answer = self._stub.DescribeDomain(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.hop) from error
        side = ContractSide.from_pb(answer.side)
        if side.institution != self.institution:
            raise MessageInvalid(
                f"the node of {self.institution} calls itself {side.institution}", hop=self.hop
            )
        return side

    def negotiate(self, own: ContractSide, domain: str, control: Control) -> Contract:
        """Agree with the peer, believing nothing that was not computed here.

        Raises:
            ContractMismatch: Each differing field, both values, and what to do.
            DomainNotFound: The peer serves another domain.
            DdibError: As the peer says, or PeerUnreachable.
        """
        request = decoding_pb2.NegotiateContractRequest(versions=versions_to_pb(), source=own.to_pb())
        remaining = control.remaining_s()
        timeout = UNARY_TIMEOUT_S if remaining is None else min(UNARY_TIMEOUT_S, remaining)
        try:
            answer = self._stub.NegotiateContract(request, timeout=timeout)
        except grpc.RpcError as error:
            control.check()
            raise from_rpc_error(error, self.hop) from error
        try:
            contract = confirm(answer, source=own, target_institution=self.institution)
        except ContractMismatch as error:
            error.hop = self.hop
            raise
        if contract.target.domain != domain:
            raise DomainNotFound(
                f"{self.institution} serves {contract.target.domain}, not {domain}",
                hop=self.hop,
                hint=f"ddib translate ... --to {self.institution}/{contract.target.domain}",
                facts={"asked": domain, "served": contract.target.domain},
            )
        return contract

    def decode(
        self,
        contract: Contract,
        *,
        request_id: str,
        solver: SolverSettings,
        round_trip: bool,
        items: int,
        latents: Iterable[ApprovedLatent],
        control: Control,
    ) -> DecodeCall:
        """Send latents as they come and read translations as they come."""
        header = decoding_pb2.DecodeHeader(
            contract_sha256=contract.digest,
            request_id=request_id,
            solver=settings_message(solver),
            round_trip=round_trip,
            items=items,
        )
        sent: dict[int, int] = {}

        def requests() -> Iterator[decoding_pb2.DecodeRequest]:
            yield decoding_pb2.DecodeRequest(header=header)
            for latent in latents:
                sent[latent.item] = latent.size_bytes
                yield from latent.stream(decoding_pb2.DecodeRequest)

        call = self._stub.Decode(requests(), timeout=control.remaining_s())
        return DecodeCall(
            call,
            contract,
            round_trip=round_trip,
            items=items,
            sent=sent,
            max_file_bytes=self._max_file_bytes,
            hop=self.hop,
        )


class Remotes:
    """Every admitted peer, each by its own channel and roots."""

    def __init__(self, channels: tls.PeerChannels, *, max_file_bytes: int) -> None:
        self._channels = channels
        self._max_file_bytes = max_file_bytes
        self._lock = threading.Lock()

    def get(self, institution: str) -> Remote:
        """The peer, over a channel that matches the certificates as they are now.

        Raises:
            PeerNotFound: No such peer was admitted.
        """
        with self._lock:
            return Remote(institution, self._channels.get(institution), max_file_bytes=self._max_file_bytes)

    def close(self) -> None:
        """Close the channels."""
        self._channels.close()
