"""An admitted peer as a `Party`: latents go out over Decode calls while the next ones are encoded.

A call carries many latents of one class. An item that the peer refuses ends its call, when the peer has answered what
it had begun by then; the items that have no answer yet go into the next one as they are. A call that has had nothing to
do for a while is ended too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
from opentelemetry.trace import Span, SpanKind

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.gate import pass_latent
from ddib_fed.bridge.party import (
    Array,
    Decoded,
    Description,
    Encoded,
    Failed,
    Labels,
    Leg,
    ToDecode,
    ToEncode,
)
from ddib_fed.errors import (
    DdibError,
    InputError,
    InternalError,
    LatentNotGaussian,
    MessageInvalid,
    PeerFault,
    PolicyDenied,
    error_class,
)
from ddib_fed.latent import Latent
from ddib_fed.rpc.faults import at_fault
from ddib_fed.rpc.refused import FACT, is_number, refused_items
from ddib_fed.telemetry import OFF, Tracing, named
from ddib_fed.trust.audit.log import Exchanged
from ddib_fed.wire.contracts.contract import Contract, ContractSide
from source_node.peer.decode_call import Answer, DecodeCall, Progress
from source_node.peer.latent_window import IDLE_S, Filler, LatentWindow, Release, Sending
from source_node.peer.remote import Remote

log = logging.getLogger(__name__)


REFUSALS = (InputError, LatentNotGaussian, PeerFault)
"""What may be wrong with an item and no other."""


def refused_in(error: DdibError, window: LatentWindow) -> list[Failed]:
    """The items without an answer that a peer's error names: its own, and others that were refused in the same call."""
    number = error.facts.get("item", "")
    reasons = refused_items(error.facts) | ({int(number): error.reason} if is_number(number) else {})
    due = [item for item in sorted(reasons) if window.answered(item) is not None]
    error.facts = {key: text for key, text in error.facts.items() if not key.startswith(FACT)}
    return [Failed(item, error if str(item) == number else _like(error, item, reasons[item])) for item in due]


def _like(error: DdibError, item: int, reason: str) -> DdibError:
    """Another item's refusal, as the peer said it with the first one's."""
    kind = error_class(reason)
    other = (kind if issubclass(kind, REFUSALS) else InternalError)(
        hop=error.hop, facts={"item": item}, incident=error.incident
    )
    other.says = error.says
    return other


def description_of(side: ContractSide) -> Description:
    """One side of a contract as a party describes itself; a contract does not carry the model's name."""
    return Description(
        side.institution,
        "",
        side.domain,
        side.sample_kind,
        side.sample_shape,
        side.model_sha256.hex(),
        side.soften_sigma,
        side.classes,
    )


class RemoteParty:
    """The model of an admitted peer, for one job."""

    def __init__(
        self,
        remote: Remote,
        contract: Contract,
        *,
        request_id: str,
        read: Callable[[bytes, int], Array],
        release: Release,
        receipt: Callable[[Exchanged], object],
        batch_rows: int,
        idle_s: float = IDLE_S,
        tracing: Tracing = OFF,
        trace: Span | None = None,
    ) -> None:
        self._tracing, self._trace = tracing, trace
        self._receipt = receipt
        self._batch_rows = batch_rows
        self._idle_s = idle_s
        self._remote = remote
        self._contract = contract
        self._request_id = request_id
        self._read = read
        self._release = release

    def describe(self) -> Description:
        return description_of(self._contract.target)

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:  # noqa: ARG002
        raise PolicyDenied(f"{self._remote.institution} encodes for its own clients alone")

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        window = LatentWindow(leg.control or Control(), self._batch_rows, idle_s=self._idle_s)
        with Filler(lambda: self._fill(latents, window), window) as filler:
            while (first := window.first()) is not None:
                yield from self._one_call(first.label, window, filler, leg)
            filler.reraise()

    def _fill(self, latents: Iterable[ToDecode], window: LatentWindow) -> None:
        try:
            for latent in latents:
                window.put(latent)
            window.put(None)
        finally:
            if isinstance(latents, Generator):
                latents.close()

    def _one_call(
        self, label: Labels, window: LatentWindow, filler: Filler, leg: Leg
    ) -> Iterator[Decoded | Failed]:
        peer = self._remote.institution
        with self._tracing.span("wire", kind=SpanKind.CLIENT, parent=self._trace, peer=peer) as span:
            yield from self._traced_call(label, window, filler, leg, span)

    def _traced_call(
        self, label: Labels, window: LatentWindow, filler: Filler, leg: Leg, span: Span
    ) -> Iterator[Decoded | Failed]:
        most = self._contract.limits.max_items_per_stream
        control = leg.control or Control()
        sending = Sending(window, self._release, filler.fail, label, most)
        call = self._remote.decode(
            self._contract,
            request_id=self._request_id,
            solver=leg.settings,
            round_trip=leg.round_trip,
            target_class=label if isinstance(label, int) else None,
            guidance=leg.guidance,
            items=most,
            latents=sending.latents(),
            control=control,
            trace=span if self._tracing.shares_with(self._remote.institution) else None,
        )
        filler.call = call
        try:
            with call:
                yield from self._answers(call, window, leg)
        except REFUSALS as error:
            # A refusal of items ends those items; what is wrong with the stream itself names none.
            failed = refused_in(error, window)
            if not failed:
                raise filler.cause(control, error) from None
            yield from failed
        except DdibError as error:
            raise filler.cause(control, error) from None
        finally:
            filler.call = None
            window.end()
            self._receipt(call.exchanged)
            span.set_attributes(
                named(
                    items_sent=call.exchanged.sent_items,
                    bytes_sent=call.exchanged.sent_bytes,
                    items_received=call.exchanged.received_items,
                    bytes_received=call.exchanged.received_bytes,
                )
            )

    def _answers(self, call: DecodeCall, window: LatentWindow, leg: Leg) -> Iterator[Decoded | Failed]:
        for answer in call:
            if isinstance(answer, Progress):
                if leg.on_step is not None:
                    leg.on_step(
                        answer.item,
                        "decode" if answer.stage == "decode" else "encode",
                        answer.step,
                        answer.steps,
                    )
                continue
            sent = window.answered(answer.item)
            assert sent is not None  # the call takes answers to what it sent
            yield self._outcome(answer, sent, leg)

    def _outcome(self, answer: Answer, sent: ToDecode, leg: Leg) -> Decoded | Failed:
        """What an answer holds; what cannot be used ends its item and no other."""
        count = len(sent.latent.data)
        try:
            samples = self._read(answer.file, count)
            again = None if answer.round_trip is None else self._again(answer, count, leg)
        except (InputError, LatentNotGaussian) as error:
            return Failed(answer.item, self.unusable(error))
        returned = 0 if answer.round_trip is None else len(answer.round_trip.data)
        crossed = answer.sent_bytes + len(answer.file) + returned
        return Decoded(answer.item, samples, None, answer.seconds, again, crossed)

    def unusable(self, error: DdibError) -> PeerFault:
        """What is said of an answer that cannot be used: the fault is the peer's, not the client's."""
        fault = at_fault(error, self._remote.hop)
        log.warning("request %s: %s", self._request_id, fault.detail)
        return fault

    def _again(self, answer: Answer, count: int, leg: Leg) -> Encoded:
        returned = answer.round_trip
        assert returned is not None  # whoever asks has seen it
        latent = Latent.from_bytes(returned.data, self._contract.sample_shape, sha256=returned.sha256)
        if len(latent.data) != count:
            raise MessageInvalid(f"a latent of {len(latent.data)} samples for one of {count}")
        statistics = pass_latent(torch.from_numpy(latent.data.copy()), leg)
        return Encoded(answer.item, latent, statistics, 0.0)
