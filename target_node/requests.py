"""Reads and checks the requests of a peer: what it proposes, the header of a Decode call, its latents and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc

from ddib_fed.bridge.control import Control
from ddib_fed.errors import InputError, MessageInvalid, PolicyDenied, SettingsInvalid, UnknownFields
from ddib_fed.latent import Latent
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.policy import check_depth, check_encoder, check_evaluations
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.server.pace import Pace
from ddib_fed.v1 import decoding_pb2
from ddib_fed.wire.anchor import Anchor
from ddib_fed.wire.contracts.contract import Contract
from ddib_fed.wire.jobs import LATER_GRIDS, LATER_SOLVERS
from ddib_fed.wire.latent import LatentOpener
from ddib_fed.wire.latent_types import types_from_pb
from ddib_fed.wire.streams.chunks import Announced, Assembler, Whole
from ddib_fed.wire.version import CALIBRATION, ECONOMY, GUIDANCE, PICTURES, Version

MAX_REQUEST_ID = 64


def proposed_types(request: decoding_pb2.NegotiateContractRequest) -> tuple[str, ...]:
    """In what a source would send latents; none for float32 alone.

    Raises:
        MessageInvalid: Only types of a later release.
    """
    found = types_from_pb(request.latent_types)
    if request.latent_types and not found:
        raise MessageInvalid("latent types of another release", facts={"field": "latent_types"})
    return found


class Unanswered:
    """Counts what came in a stream and was not answered yet; from any thread."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def change(self, by: int) -> None:
        """One more, or one fewer."""
        with self._lock:
            self._count += by

    @property
    def any(self) -> bool:
        """Whether there is something."""
        return self._count > 0


def stream_header(requests: Iterator[decoding_pb2.DecodeRequest]) -> decoding_pb2.DecodeHeader:
    """The header, which is the first message of a Decode call.

    Raises:
        MessageInvalid: It is not.
    """
    first = next(requests, None)
    if first is None or first.WhichOneof("message") != "header":
        raise MessageInvalid("the first message of Decode must be its header", facts={"field": "header"})
    return first.header


def check_header(header: decoding_pb2.DecodeHeader, contract: Contract, config: NodeConfig) -> None:
    """Return if a Decode call may ask for this under its contract and this node's policy.

    Raises:
        MessageInvalid: The number of items or the request's id is out of bounds.
        UnknownFields: It has fields of a later version than the contract's.
        SettingsInvalid: More evaluations than the contract allows.
        PolicyDenied: A depth, an encoder, a number of evaluations or a round trip that is not allowed here.
    """
    limits, policy = contract.limits, config.policy
    if not 1 <= header.items <= limits.max_items_per_stream:
        raise MessageInvalid(
            f"{header.items} items in one stream",
            facts={"items": header.items, "limit_items": limits.max_items_per_stream},
        )
    if not 1 <= len(header.request_id) <= MAX_REQUEST_ID:
        raise MessageInvalid("a request id of 1 to 64 characters is needed", facts={"field": "request_id"})
    _check_version(header, contract.version)
    if header.solver.evaluations > limits.max_evaluations:
        raise SettingsInvalid(
            f"{header.solver.evaluations} evaluations",
            facts={"evaluations": header.solver.evaluations, "limit": limits.max_evaluations},
        )
    settings = solver_settings(header.solver)
    check_depth(settings, policy)
    check_encoder(settings, policy)
    check_evaluations(settings, policy.least_evaluations, where=config.node.institution)
    if header.round_trip and not policy.round_trip:
        raise PolicyDenied("round trips are switched off here", facts={"policy": "round_trip"})


def _check_version(header: decoding_pb2.DecodeHeader, version: Version) -> None:
    solver = header.solver
    if version < PICTURES and (header.HasField("target_class") or solver.depth):
        raise UnknownFields(f"protocol {version} knows neither classes nor depth")
    if version < GUIDANCE and header.HasField("guidance"):
        raise UnknownFields(f"protocol {version} knows no guidance")
    if version < CALIBRATION and solver.encoder:
        raise UnknownFields(f"protocol {version} knows no choice of the encoder")
    if version < ECONOMY and (solver.solver in LATER_SOLVERS or solver.grid in LATER_GRIDS):
        raise UnknownFields(f"protocol {version} knows neither learned grids nor flow maps")


def latents_of(
    messages: Iterator[decoding_pb2.DecodeRequest],
    contract: Contract,
    max_items: int,
    pace: Pace,
    on_latent: Callable[[int, Anchor | None], object] = lambda *_: None,
) -> Iterator[tuple[int, Latent]]:
    """The latents of a stream, each checked against the contract before its bytes are read.

    Args:
        messages: Those behind the header.
        contract: Of the stream.
        max_items: As the header says.
        pace: Of the messages.
        on_latent: Called before each latent is returned, with its bytes and the end of the source's audit log that came
            with it.
    """
    check = LatentOpener(contract, max_items=max_items)

    def opener(header: decoding_pb2.LatentHeader) -> Announced:
        announced = check(header)
        pace.begin(announced.size_bytes)
        return announced

    assembler = Assembler({"latent": opener})
    for message in messages:
        whole = assembler.feed(message)
        if whole is not None:
            pace.end()
            on_latent(whole.header.tensor.size_bytes, check.anchor)
            yield whole.header.item, _latent(whole, contract)
    assembler.end()


def _latent(whole: Whole, contract: Contract) -> Latent:
    try:
        assert whole.landed is not None  # the opener asks for it
        return Latent.from_bytes(
            whole.landed, contract.sample_shape, contract.wire_type, sha256=whole.header.tensor.sha256
        )
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
