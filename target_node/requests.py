"""Reads and checks the requests of a peer: what it proposes, the header of a Decode call, its latents and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc

from ddib_fed.bridge.control import Control
from ddib_fed.errors import InputError, MessageInvalid
from ddib_fed.latent import Latent
from ddib_fed.server.pace import Pace
from ddib_fed.v1 import decoding_pb2
from ddib_fed.wire.anchor import Anchor
from ddib_fed.wire.contracts.contract import Contract
from ddib_fed.wire.latent import LatentOpener
from ddib_fed.wire.latent_types import types_from_pb
from ddib_fed.wire.streams.chunks import Announced, Assembler, Whole


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
