"""An admitted peer as a `Party`: latents go out over Decode calls while the next ones are encoded.

A call carries many latents of one class. An item that the peer refuses ends its call, when the peer has answered what
it had begun by then; the items that have no answer yet go into the next one as they are. A call that has had nothing to
do for a while is ended too.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import torch
from opentelemetry.trace import Span, SpanKind

from ddib_fed.engine.gate import pass_latent
from ddib_fed.engine.party import (
    Array,
    Control,
    Decoded,
    Encoded,
    Failed,
    Labels,
    Leg,
    ToDecode,
    ToEncode,
)
from ddib_fed.errors import (
    DdibError,
    DomainNotFound,
    InputError,
    InternalError,
    LatentNotGaussian,
    MessageInvalid,
    PeerFault,
    PeerUnreachable,
    PolicyDenied,
    error_class,
)
from ddib_fed.latent import Latent
from ddib_fed.node.role import settings_message
from ddib_fed.protocol.contract import (
    PROTOCOL,
    CalibrationTerms,
    Contract,
    ContractLimits,
    ContractSide,
    GuidanceTerms,
    confirm,
    guidance_to_pb,
    require_protocol,
)
from ddib_fed.protocol.details import FACT, at_fault, checking_answers, is_number, refused_items
from ddib_fed.protocol.latent import ApprovedLatent
from ddib_fed.protocol.messages import from_message, to_message
from ddib_fed.security import tls
from ddib_fed.security.audit import Exchanged
from ddib_fed.telemetry import OFF, Tracing, is_taken, named, trace_entries
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc
from source_node.decode_call import (
    IDLE_S,
    DecodeCall,
    Filler,
    LatentWindow,
    PeerAnswer,
    Release,
    Sent,
    failure,
    sending,
)

UNARY_TIMEOUT_S = 10.0
# Longer than a few of the signs of life that a target sends (`target_node.stream.SIGN_OF_LIFE_S`).
SILENCE_S = 120.0


class Described(NamedTuple):
    """What a peer says of itself: its half of a contract, what guidance it offers."""

    side: ContractSide
    guidance: GuidanceTerms | None


class Remote:
    """One admitted peer."""

    def __init__(
        self, institution: str, channel: grpc.Channel, *, max_file_bytes: int, silence_s: float = SILENCE_S
    ) -> None:
        self.institution = institution
        self.hop = f"target {institution}"
        self._stub = decoding_pb2_grpc.DecodingServiceStub(channel)
        self._max_file_bytes = max_file_bytes
        self._silence_s = silence_s
        self.takes_traces = False

    def describe(self, timeout_s: float = UNARY_TIMEOUT_S) -> Described:
        """What the peer decodes to."""
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        try:
            answer = self._stub.DescribeDomain(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise failure(error, self.hop) from error
        except ValueError as error:
            raise self._closed() from error
        require_protocol(PROTOCOL, answer.protocol, self.hop)
        with checking_answers(self.hop):
            limits = from_message(answer.limits, ContractLimits)
            side = from_message(answer.side, ContractSide)
            if side.institution != self.institution:
                raise MessageInvalid(f"its node calls itself {side.institution}")
        return Described(side, limits.guidance)

    def negotiate(
        self,
        own: ContractSide,
        domain: str,
        control: Control,
        calibration: CalibrationTerms | None = None,
    ) -> Contract:
        """Agree with the peer, believing nothing that was not computed here."""
        request = decoding_pb2.NegotiateContractRequest(
            protocol=PROTOCOL,
            source=to_message(own, decoding_pb2.ContractSide),
            calibration=None if calibration is None else to_message(calibration, common_pb2.CalibrationTerms),
        )
        answer = self._propose(request, control)
        with checking_answers(self.hop):
            contract = confirm(
                answer,
                source=own,
                target_institution=self.institution,
                calibration=calibration,
            )
        if contract.target.domain != domain:
            raise DomainNotFound(
                f"{self.institution} serves {contract.target.domain}, not {domain}",
                hop=self.hop,
                hint=f"ddib translate ... --to {self.institution}/{contract.target.domain}",
                facts={"asked": domain, "served": contract.target.domain},
            )
        return contract

    def _propose(
        self, request: decoding_pb2.NegotiateContractRequest, control: Control
    ) -> decoding_pb2.NegotiateContractResponse:
        remaining = control.remaining_s()
        timeout = UNARY_TIMEOUT_S if remaining is None else min(UNARY_TIMEOUT_S, remaining)
        try:
            call = self._stub.NegotiateContract.future(request, timeout=timeout)
            with control.interrupting(call.cancel):
                answer: decoding_pb2.NegotiateContractResponse = call.result()
                self.takes_traces = is_taken(call.trailing_metadata())
                return answer
        except grpc.FutureCancelledError as error:
            control.check()
            raise self._closed() from error
        except grpc.RpcError as error:
            raise failure(error, self.hop, control) from error
        except ValueError as error:
            raise self._closed() from error

    def decode(
        self,
        contract: Contract,
        header: decoding_pb2.DecodeHeader,
        latents: Iterable[ApprovedLatent | None],
        control: Control,
        trace: Span | None = None,
    ) -> DecodeCall:
        """Send latents as they come and read translations as they come."""
        sent = Sent()
        beside = trace_entries(trace if self.takes_traces else None)
        try:
            call = self._stub.Decode(sent.requests(header, latents), timeout=control.remaining_s(), **beside)
        except ValueError as error:
            raise self._closed() from error
        return DecodeCall(
            call,
            contract,
            header,
            sent,
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
            control=control,
            hop=self.hop,
        )

    def _closed(self) -> PeerUnreachable:
        return PeerUnreachable(f"the channel to {self.hop} was closed", hop=self.hop)


class Remotes:
    """Every admitted peer, each by its own channel and roots."""

    def __init__(
        self, channels: tls.PeerChannels, *, max_file_bytes: int, silence_s: float = SILENCE_S
    ) -> None:
        self._channels = channels
        self._max_file_bytes = max_file_bytes
        self._silence_s = silence_s

    def get(self, institution: str) -> Remote:
        """The peer, over a channel that matches the certificates as they are now."""
        return Remote(
            institution,
            self._channels.get(institution),
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
        )

    def explained(self, institution: str, error: DdibError, timeout_s: float) -> DdibError:
        """A failed call's error with the cause of the failed connection, where that is what it is."""
        found = self._channels.explained(institution, error, timeout_s)
        if "found" in found.facts:
            found.facts["peer"] = institution
        return found

    def refresh(self) -> None:
        self._channels.refresh()

    def close(self) -> None:
        self._channels.close()


FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


@dataclass(slots=True)
class _Peer:
    """What is known of one."""

    answers: bool = False
    trying: str = ""
    not_before: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    reason: str = ""


class CircuitBreaker:
    """What a source knows of its peers; safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, _Peer] = {}

    def may_try(self, institution: str) -> bool:
        """Whether a job for it may be taken up: it answers, or nobody tries and the pause is over."""
        with self._lock:
            peer = self._peers.get(institution)
            if peer is None or peer.answers:
                return True
            return not peer.trying and self._clock() >= peer.not_before

    def begin(self, institution: str, job_id: str) -> None:
        """A job was taken up; where nothing is known, it is the one that tries."""
        with self._lock:
            peer = self._peers.setdefault(institution, _Peer())
            if not peer.answers and not peer.trying:
                peer.trying = job_id

    def answered(self, institution: str) -> bool:
        """It did; whether that is news."""
        with self._lock:
            peer = self._peers.setdefault(institution, _Peer())
            news = not peer.answers
            self._peers[institution] = _Peer(answers=True)
            return news

    def failed(self, institution: str, reason: str, at_least_s: float = 0.0) -> bool:
        """It did not; whether that is news. The next try is after a pause that grows."""
        with self._lock:
            peer = self._peers.setdefault(institution, _Peer())
            news = not peer.reason
            pause = max(at_least_s, peer.pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            peer.answers, peer.trying, peer.reason = False, "", reason
            peer.not_before = self._clock() + pause
            peer.pause_s = min(2 * peer.pause_s, LONGEST_PAUSE_S)
            return news

    def end(self, institution: str, job_id: str) -> None:
        """A job is over, whatever it met; if it was the one that tried, another may."""
        with self._lock:
            peer = self._peers.get(institution)
            if peer is not None and peer.trying == job_id:
                peer.trying = ""

    def reason(self, institution: str) -> str:
        """Why it is away; empty when it is not, as far as is known."""
        with self._lock:
            peer = self._peers.get(institution)
            return "" if peer is None else peer.reason

    @property
    def away(self) -> Collection[str]:
        with self._lock:
            return {name for name, peer in self._peers.items() if peer.reason}


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
        latents = sending(window, self._release, filler.fail, label, most)
        header = decoding_pb2.DecodeHeader(
            contract_sha256=self._contract.digest,
            request_id=self._request_id,
            solver=settings_message(leg.settings),
            round_trip=leg.round_trip,
            items=most,
            target_class=label if isinstance(label, int) else None,
            guidance=guidance_to_pb(leg.guidance),
        )
        trace = span if self._tracing.shares_with(self._remote.institution) else None
        call = self._remote.decode(self._contract, header, latents, control, trace)
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
            if isinstance(answer, decoding_pb2.DecodeProgress):
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

    def _outcome(self, answer: PeerAnswer, sent: ToDecode, leg: Leg) -> Decoded | Failed:
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

    def _again(self, answer: PeerAnswer, count: int, leg: Leg) -> Encoded:
        returned = answer.round_trip
        assert returned is not None  # whoever asks has seen it
        latent = Latent.from_bytes(returned.data, self._contract.sample_shape, sha256=returned.sha256)
        if len(latent.data) != count:
            raise MessageInvalid(f"a latent of {len(latent.data)} samples for one of {count}")
        statistics = pass_latent(torch.from_numpy(latent.data.copy()), leg)
        return Encoded(answer.item, latent, statistics, 0.0)
