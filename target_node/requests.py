"""Reads and checks the requests of a peer: what it proposes, the header of a Decode call, its latents and its end."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import grpc

from ddib_fed.engine.party import Control
from ddib_fed.errors import ContractUnknown, InputError, MessageInvalid, PolicyDenied, SettingsInvalid
from ddib_fed.latent import Latent
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.interceptors import Pace
from ddib_fed.node.policy import check_settings
from ddib_fed.node.role import solver_settings
from ddib_fed.protocol.contract import Contract
from ddib_fed.protocol.latent import Anchor, LatentOpener
from ddib_fed.protocol.streams import MAX_CHUNK, Announced, Assembler, Whole
from ddib_fed.v1 import decoding_pb2

MAX_CONTRACTS = 8
"""Remembered of one peer: it needs one at a time, and an old one lives on for calls that are on their way."""


class AgreedContracts:
    """Contracts by digest; safe to use from any thread."""

    def __init__(self) -> None:
        self._contracts: OrderedDict[bytes, Contract] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, sha256: bytes) -> bool:
        with self._lock:
            return sha256 in self._contracts

    def remember(self, contract: Contract) -> None:
        """Keep a contract as the newest of its peer, which drops its own oldest one, and none of another peer."""
        institution = contract.source.institution
        with self._lock:
            self._contracts[contract.digest] = contract
            self._contracts.move_to_end(contract.digest)
            own = [
                digest for digest, each in self._contracts.items() if each.source.institution == institution
            ]
            for digest in own[:-MAX_CONTRACTS]:
                del self._contracts[digest]

    def get(self, sha256: bytes, institution: str) -> Contract:
        """The contract of this digest with a peer."""
        with self._lock:
            contract = self._contracts.get(sha256)
        if contract is None or contract.source.institution != institution:
            raise ContractUnknown("a contract that was not agreed on with this process", retry_after_s=0.1)
        return contract


AHEAD_BYTES: Final = 4 << 20
"""Of a Decode call's messages that are read before they are asked for; as much may have been handed over already."""
LEAST_WEIGHT: Final = 16 << 10
"""What the smallest message counts: at most 256 of them wait, a batch of small latents and no flood of empty ones."""
SMALL_BYTES: Final = 64 << 10
"""Latents up to this size count as what they are."""


class Unanswered:
    """Counts what came in a stream and was not answered yet; from any thread."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def change(self, by: int) -> None:
        with self._lock:
            self._count += by

    @property
    def any(self) -> bool:
        return self._count > 0


def stream_header(requests: Iterator[decoding_pb2.DecodeRequest]) -> decoding_pb2.DecodeHeader:
    """The header, which is the first message of a Decode call."""
    first = next(requests, None)
    if first is None or first.WhichOneof("message") != "header":
        raise MessageInvalid("the first message of Decode must be its header", facts={"field": "header"})
    return first.header


def check_header(header: decoding_pb2.DecodeHeader, contract: Contract, config: NodeConfig) -> None:
    """Return if a Decode call may ask for this under its contract and this node's policy."""
    limits, policy = contract.limits, config.policy
    if not 1 <= header.items <= limits.max_items_per_stream:
        raise MessageInvalid(
            f"{header.items} items in one stream",
            facts={"items": header.items, "limit_items": limits.max_items_per_stream},
        )
    if not header.request_id:
        raise MessageInvalid("a request id is needed", facts={"field": "request_id"})
    if header.solver.evaluations > limits.max_evaluations:
        raise SettingsInvalid(
            f"{header.solver.evaluations} evaluations",
            facts={"evaluations": header.solver.evaluations, "limit": limits.max_evaluations},
        )
    settings = solver_settings(header.solver)
    check_settings(settings, policy, where=config.node.institution)
    if header.round_trip and not policy.round_trip:
        raise PolicyDenied("round trips are switched off here", facts={"policy": "round_trip"})


@dataclass(frozen=True, slots=True)
class Arrived:
    """A latent that came whole, and the end of the source's audit log as the stream told it last; None for never."""

    item: int
    latent: Latent
    anchor: Anchor | None = None


def latents_of(
    messages: Iterator[decoding_pb2.DecodeRequest],
    contract: Contract,
    max_items: int,
    pace: Pace,
    on_latent: Callable[[int, Anchor | None], object] = lambda *_: None,
    *,
    ready: Callable[[], bool] = lambda: False,
    most_rows: int = 1,
) -> Iterator[list[Arrived]]:
    """The latents of a stream, each checked against the contract before its bytes are read, as many as have come."""
    arriving = _Arriving(contract, max_items, pace, on_latent)
    failed: Exception | None = None
    try:
        for message in messages:
            arriving.feed(message)
            if arriving.rows and (arriving.rows >= most_rows or not ready()):
                yield arriving.take()
        arriving.end()
    except Exception as error:  # noqa: BLE001 - raised after what came before it
        failed = error
    if arriving.rows:
        yield arriving.take()
    if failed is not None:
        raise failed


class _Arriving:
    """The latents of a stream that came and were not taken; arguments as of `latents_of`."""

    def __init__(
        self,
        contract: Contract,
        max_items: int,
        pace: Pace,
        on_latent: Callable[[int, Anchor | None], object],
    ) -> None:
        self._contract, self._pace, self._on_latent = contract, pace, on_latent
        self._check = LatentOpener(contract, max_items=max_items)
        self._assembler = Assembler({"latent": self._open})
        self._arrived: list[Arrived] = []
        self._anchor: Anchor | None = None
        self.rows = 0
        self.end = self._assembler.end

    def take(self) -> list[Arrived]:
        taken, self._arrived, self.rows = self._arrived, [], 0
        return taken

    def feed(self, message: decoding_pb2.DecodeRequest) -> None:
        whole = self._assembler.feed(message)
        if whole is None:
            return
        self._pace.end()
        self._anchor = self._check.anchor or self._anchor
        self._on_latent(whole.header.tensor.size_bytes, self._check.anchor)
        latent = _latent(whole, self._contract)
        self._arrived.append(Arrived(whole.header.item, latent, self._anchor))
        self.rows += len(latent.data)

    def _open(self, header: decoding_pb2.LatentHeader) -> Announced:
        announced = self._check(header)
        self._pace.begin(announced.size_bytes)
        return announced


class Weighing:
    """What each message of a Decode call counts towards `AHEAD_BYTES`, about its size; called in their order."""

    def __init__(self) -> None:
        self._small = False

    def __call__(self, message: decoding_pb2.DecodeRequest) -> int:
        kind = message.WhichOneof("message")
        if kind == "latent":
            self._small = message.latent.tensor.size_bytes <= SMALL_BYTES
        if kind != "chunk":
            return LEAST_WEIGHT
        return max(LEAST_WEIGHT, len(message.chunk.data)) if self._small else MAX_CHUNK


def _latent(whole: Whole, contract: Contract) -> Latent:
    try:
        return Latent.from_bytes(whole.data, contract.sample_shape, sha256=whole.header.tensor.sha256)
    except InputError as error:
        error.facts["item"] = str(whole.header.item)
        raise


def control_of(context: grpc.ServicerContext) -> Control:
    """Ends the work when the call ends: cancelled, disconnected, or past its deadline."""
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining > threading.TIMEOUT_MAX:
        remaining = None  # gRPC's number for a call without a deadline
    control = Control(None if remaining is None else time.monotonic() + remaining)
    if not context.add_callback(control.cancel):
        control.cancel()
    return control
