"""Makes the model of an admitted peer a `Party` over Decode calls, after a contract with it.

Every answer of a peer is checked before it is used. A call carries many latents, which go out while the next ones are
encoded. A refused item ends its call after the peer's pending answers; unanswered latents go into the next call. An
idle call is ended too.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import torch
from opentelemetry.trace import Span, SpanKind

from ddib_fed import errors
from ddib_fed.engine.gate import pass_latent
from ddib_fed.engine.party import Array, Control, Decoded, Encoded, Failed, Leg, Stage, ToDecode, ToEncode
from ddib_fed.latent import Latent
from ddib_fed.node.role import settings_message
from ddib_fed.protocol.calls import at_fault, checking_answers, failure_of_peer, is_number
from ddib_fed.protocol.contract import (
    MAX_EVALUATIONS,
    PROTOCOL,
    Contract,
    check_limits,
    check_side,
    confirm,
    guidance_to_pb,
    require_protocol,
)
from ddib_fed.protocol.latent import ApprovedLatent, LatentOpener, audit_head
from ddib_fed.protocol.streams import Announced, Assembler, Whole, open_file
from ddib_fed.security import tls
from ddib_fed.security.audit import Exchanged
from ddib_fed.telemetry import OFF, Tracing, is_taken, named, trace_entries
from ddib_fed.v1 import common_pb2, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1.decoding_pb2 import ContractSide

log = logging.getLogger(__name__)

UNARY_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 120.0
"""This is longer than a few signs of life of a target (`target_node.stream.SIGN_OF_LIFE_S`)."""
MAX_SECONDS: Final = 1e7
ANSWERS: Final = {
    "point": common_pb2.MEDIA_TYPE_NPY, "picture": common_pb2.MEDIA_TYPE_PNG, "volume": common_pb2.MEDIA_TYPE_NPY,
}  # fmt: skip
STAGES: Final[Mapping[str, Stage]] = {"decode": "decode", "encode": "encode"}
# Latents wait for the wire in whole batches, so that the next batch is complete when the wire is free.
WAITING_BATCHES: Final = 1
FEW_WAITING: Final = 2
# Unanswered latents are a batch that the peer computes, one that waits at the peer, and one on the way.
UNANSWERED_BATCHES: Final = 3
FEW_UNANSWERED: Final = 4
IDLE_S: Final = 60.0
"""End a call that has been idle for so long, before its peer does (`idle_s` in its [limits], by default 300 s)."""
GATHER_S: Final = 0.004
"""Latents that come no further apart are sent, and written to the disk, together."""
POLL_S: Final = 0.2
REFUSALS: Final = (errors.InputError, errors.LatentNotGaussian, errors.PeerFault)

Release = Callable[[Sequence[ToDecode]], Sequence[ApprovedLatent]]


class Remote:
    """An admitted peer over one channel."""

    def __init__(
        self, institution: str, channel: grpc.Channel, *, max_file_bytes: int, silence_s: float = SILENCE_S
    ) -> None:
        self.institution = institution
        self.hop = f"target {institution}"
        self.max_file_bytes = max_file_bytes
        self._stub = decoding_pb2_grpc.DecodingServiceStub(channel)
        self._silence_s = silence_s
        self.takes_traces = False

    def describe(
        self, timeout_s: float = UNARY_TIMEOUT_S
    ) -> tuple[pb.ContractSide, common_pb2.GuidanceTerms]:
        """Return the peer's half of a contract, and the guidance that it offers; raise unless both are valid."""
        request = pb.DescribeDomainRequest(protocol=PROTOCOL)
        try:
            answer = self._stub.DescribeDomain(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise failure(error, self.hop) from error
        require_protocol(PROTOCOL, answer.protocol, self.hop)
        with checking_answers(self.hop):
            limits, side = check_limits(answer.limits), check_side(answer.side)
            if side.institution != self.institution:
                raise errors.MessageInvalid(f"its node calls itself {side.institution}")
        return side, limits.guidance

    def negotiate(
        self,
        own: ContractSide,
        domain: str,
        control: Control,
        calibration: common_pb2.CalibrationTerms | None = None,
    ) -> Contract:
        """Return a contract with the peer for this domain; raise unless its answer is what this node computes."""
        request = pb.NegotiateContractRequest(protocol=PROTOCOL, source=own, calibration=calibration)
        remaining = control.remaining_s()
        timeout = UNARY_TIMEOUT_S if remaining is None else min(UNARY_TIMEOUT_S, remaining)
        try:
            call = self._stub.NegotiateContract.future(request, timeout=timeout)
            with control.interrupting(call.cancel):
                answer: pb.NegotiateContractResponse = call.result()
        except grpc.FutureCancelledError as error:
            control.check()
            raise errors.PeerUnreachable(f"the channel to {self.hop} was closed", hop=self.hop) from error
        except grpc.RpcError as error:
            raise failure(error, self.hop, control) from error
        self.takes_traces = is_taken(call.trailing_metadata())
        with checking_answers(self.hop):
            contract = confirm(
                answer, source=own, target_institution=self.institution, calibration=calibration
            )
        if contract.target.domain != domain:
            raise errors.DomainNotFound(
                f"{self.institution} serves {contract.target.domain}, not {domain}",
                hop=self.hop,
                hint=f"ddib translate ... --to {self.institution}/{contract.target.domain}",
                facts={"asked": domain, "served": contract.target.domain},
            )
        return contract

    def decode(
        self,
        contract: Contract,
        header: pb.DecodeHeader,
        latents: Iterable[ApprovedLatent | None],
        control: Control,
        trace: Span | None = None,
    ) -> DecodeCall:
        """Send latents as they come, None after the last, and read translations as they come."""
        call = DecodeCall(contract, header, control, max_file_bytes=self.max_file_bytes, hop=self.hop)
        entries = trace_entries(trace if self.takes_traces else None)
        requests = call.requests(header, latents)
        call.answers = self._stub.Decode(requests, timeout=control.remaining_s(), **entries)
        call.answers.silence_s = self._silence_s
        return call


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """One item from the peer, unchecked: the translation's file, and for a round trip its latent."""

    item: int
    file: bytes
    seconds: float
    crossed: int
    """The bytes of both directions are counted."""
    latent: Whole | None


class DecodeCall:
    """One Decode call, open for as long as its context: iterate over what comes back; `cancel` from any thread."""

    answers: Any

    def __init__(
        self, contract: Contract, header: pb.DecodeHeader, control: Control, *, max_file_bytes: int, hop: str
    ) -> None:
        self.exchanged = Exchanged()
        self._contract, self._control, self._hop = contract, control, hop
        self._round_trip, self._max_file_bytes = header.round_trip, max_file_bytes
        self._unanswered: dict[int, int] = {}
        """Map items to the sizes of their latents; gRPC's thread fills this, the reader's empties it."""
        self._all_sent = False
        self._result: Whole | None = None
        self._latent_opener = LatentOpener(contract, max_items=header.items)
        self._assembler = Assembler({"result": self._open_result, "latent": self._open_latent})
        self._interrupting: AbstractContextManager[None] = control.interrupting(self.cancel)

    def __enter__(self) -> Self:
        self._interrupting.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._interrupting.__exit__(None, None, None)
        self.cancel()

    def cancel(self) -> None:
        self.answers.cancel()

    def requests(
        self, header: pb.DecodeHeader, latents: Iterable[ApprovedLatent | None]
    ) -> Iterator[pb.DecodeRequest]:
        """Yield the call's messages; latents end with None unless they are broken off."""
        yield pb.DecodeRequest(header=header)
        for latent in latents:
            if latent is None:
                self._all_sent = True
                return
            self._unanswered[latent.item] = latent.size_bytes
            self.exchanged.sent(latent.size_bytes)
            yield from latent.stream(pb.DecodeRequest)

    def __iter__(self) -> Iterator[pb.DecodeProgress | PeerAnswer]:
        try:
            for message in self.answers:
                yield from self._read(message)
            self._assembler.end()
        except grpc.RpcError as error:
            if self.answers.gave_up:
                self._control.check()
                raise errors.PeerUnreachable(f"{self._hop} was silent for too long", hop=self._hop) from error
            raise failure(error, self._hop, self._control) from error
        except (errors.InputError, errors.ChunkCorrupt) as error:
            raise at_fault(error, self._hop) from error
        if self._result is not None or self._unanswered or not self._all_sent:
            raise at_fault(errors.MessageInvalid("the stream ended before its last result"), self._hop)

    def _read(self, message: pb.DecodeResponse) -> Iterator[pb.DecodeProgress | PeerAnswer]:
        if message.WhichOneof("message") != "progress":
            if (whole := self._assembler.feed(message)) is not None:
                yield from self._take(whole)
            return
        progress = message.progress
        if message.data:
            raise errors.MessageInvalid("progress with bytes")
        if progress.steps > MAX_EVALUATIONS or progress.step > progress.steps > 0:
            raise errors.MessageInvalid(f"step {progress.step} of {progress.steps}")
        # Anything else is only a sign of life.
        if progress.steps and progress.item in self._unanswered and progress.stage in STAGES:
            yield progress

    def _open_result(self, header: pb.DecodedHeader) -> Announced:
        if header.item not in self._unanswered:
            raise errors.MessageInvalid(f"a result for item {header.item}, which is not due")
        if self._result is not None:
            raise errors.MessageInvalid("two results where a latent was due")
        self.exchanged.anchor = audit_head(header) or self.exchanged.anchor
        kind = self._contract.target.sample_kind
        return open_file(header.file, max_bytes=self._max_file_bytes, accepted={ANSWERS[kind]})

    def _open_latent(self, header: pb.LatentHeader) -> Announced:
        """Raise unless the latent is of the size that was sent; the peer set the contract's limits itself."""
        if self._result is None or header.item != self._result.header.item:
            raise errors.MessageInvalid("a latent without its result")
        if (size := header.tensor.size_bytes) != (sent := self._unanswered[header.item]):
            raise errors.MessageInvalid(f"a latent of {size} bytes for one of {sent}")
        return self._latent_opener(header)

    def _take(self, whole: Whole) -> Iterator[PeerAnswer]:
        """Yield the item after its last part."""
        if whole.kind == "result" and self._round_trip:
            self._result = whole
            return
        result, latent = (whole, None) if self._result is None else (self._result, whole)
        self._result = None
        header, file = result.header, bytes(result.data)
        received = len(file) + (0 if latent is None else len(latent.data))
        self.exchanged.received(received)
        seconds = header.seconds if header.seconds < MAX_SECONDS else 0.0
        yield PeerAnswer(header.item, file, seconds, self._unanswered.pop(header.item) + received, latent)


def failure(error: grpc.RpcError, hop: str, control: Control | None = None) -> errors.DdibError:
    """Return the error that a failed call means for its job; raise if the job was cancelled or its time is over."""
    meaning = failure_of_peer(error, hop)
    if control is not None:
        try:
            control.check()
        except errors.DeadlineExceeded as late:
            late.facts["last"] = meaning.detail
            raise
    if isinstance(meaning, errors.Cancelled | errors.DeadlineExceeded):
        return errors.PeerUnreachable(
            f"{hop} gave the call up, or did not answer in time ({meaning.reason})", hop=hop
        )
    return meaning


@dataclass(frozen=True, slots=True)
class Remotes:
    """The peers of a node, by institution."""

    channels: tls.PeerChannels
    max_file_bytes: int
    silence_s: float = SILENCE_S

    def get(self, institution: str) -> Remote:
        """Return the peer, over a channel that matches the current certificates."""
        channel = self.channels.get(institution)
        return Remote(institution, channel, max_file_bytes=self.max_file_bytes, silence_s=self.silence_s)


class _Stopped(Exception):  # noqa: N818 - a signal between threads, no error
    """The call, or all of them, ended before the latents did."""


class LatentWindow:
    """Bounded numbers of waiting and of unanswered latents, between an encoder's thread and a peer.

    A context manager. An error of the encoder or of the release is raised to the reader of the answers.
    """

    def __init__(self, latents: Iterable[ToDecode], control: Control, batch_rows: int) -> None:
        self._latents = latents
        self._control = control
        self._batch_rows = batch_rows
        lock = threading.RLock()
        self._changed, self._pause = threading.Condition(lock), threading.Condition(lock)
        self._waiting: deque[ToDecode | None] = deque()
        """The last latent is followed by None."""
        self._unanswered: dict[int, ToDecode] = {}
        self._stopped = False
        self._number = 0
        """Only the call of this number may take latents."""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, name="encode", daemon=True)
        self.call: DecodeCall | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()
        self._thread.join()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _fill(self) -> None:
        try:
            for latent in itertools.chain(self._latents, [None]):
                with self._changed:
                    while _full(self._waiting, FEW_WAITING, WAITING_BATCHES * self._batch_rows):
                        self._wait()
                    self._check()
                    self._waiting.append(latent)
                    self._changed.notify_all()
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that reads the answers
            self._fail(error)
        finally:
            if isinstance(self._latents, Generator):
                self._latents.close()

    def _fail(self, error: BaseException) -> None:
        """End the stream with an error, whichever thread met it; the first one stays."""
        self._error = self._error or error
        self._stop()
        if (call := self.call) is not None:
            call.cancel()

    def has_more(self) -> bool:
        """Wait until it is known whether a latent still needs an answer, and return that; raise a kept error."""
        with self._changed:
            while not (self._stopped or self._unanswered or self._waiting):
                self._wait()
            if not self._stopped:
                return bool(self._unanswered) or self._waiting[0] is not None
        if self._error is not None:
            raise self._error
        return False

    def sending(self, release: Release, most: int) -> Iterator[ApprovedLatent | None]:
        """Yield a new call's latents, unanswered ones first, on gRPC's thread; None last unless broken off."""
        with self._changed:  # at once, not when the first is asked for: the call is ended by its number
            self._number += 1
            number, again = self._number, list(self._unanswered.values())

        def latents() -> Iterator[ApprovedLatent | None]:
            left, taken = most - len(again), again
            try:
                while True:
                    approved = release(taken) if taken else []
                    for left_out in {latent.number for latent in taken} - {a.item for a in approved}:
                        self.answered(left_out)
                    yield from approved
                    if not left or not (taken := self._take(number, left)):
                        break
                    left -= len(taken)
            except (_Stopped, errors.Cancelled, errors.DeadlineExceeded):
                return
            except Exception as error:  # noqa: BLE001 - raised again for whoever reads the answers
                self._fail(error)
                return
            yield None

        return latents()

    def _take(self, number: int, most: int) -> list[ToDecode]:
        """Wait until latents are waiting and the peer has few enough; return at most `most`, none to end the call."""
        with self._changed:
            idle = time.monotonic() + IDLE_S
            while self._number == number and (not self._waiting or self._is_full()):
                if self._waiting and self._waiting[0] is None:
                    return []
                if self._waiting or self._unanswered:
                    idle = time.monotonic() + IDLE_S
                elif time.monotonic() > idle:
                    return []
                self._wait()
            self._gather(number)
            self._check()
            if self._number != number:
                raise _Stopped
            taken: list[ToDecode] = []
            while len(taken) < most and self._waiting and not self._is_full():
                if (latent := self._waiting[0]) is None:
                    break
                self._waiting.popleft()
                taken.append(latent)
                self._unanswered[latent.number] = latent
            self._changed.notify_all()
            return taken

    def _gather(self, number: int) -> None:
        """Wait while the latents of a batch arrive one by one."""
        before = 0
        while self._number == number and before < (before := len(self._waiting)) < self._batch_rows:
            if self._waiting[-1] is None:
                break
            self._pause.wait(GATHER_S)  # which nobody notifies

    def answered(self, number: int) -> ToDecode | None:
        """Return the latent that is answered now; None if it was not unanswered."""
        with self._changed:
            self._changed.notify_all()
            return self._unanswered.pop(number, None)

    def end_call(self) -> None:
        """Let the ended call's sender take no more latents."""
        with self._changed:
            self.call = None
            self._number += 1
            self._changed.notify_all()

    def cause(self, failed: errors.DdibError) -> BaseException:
        """Return why a call failed: this node's own error, or the control's, before the call's error."""
        late = errors.DeadlineExceeded
        if isinstance(failed, late) and isinstance(self._error, late | None):
            return failed  # it says what the call waited for
        if self._error is not None:
            return self._error
        try:
            self._control.check()
        except errors.DdibError as error:
            return error
        return failed

    def _is_full(self) -> bool:
        return _full(self._unanswered.values(), FEW_UNANSWERED, UNANSWERED_BATCHES * self._batch_rows)

    def _wait(self) -> None:
        self._check()
        self._changed.wait(POLL_S)

    def _check(self) -> None:
        self._control.check()
        if self._stopped:
            raise _Stopped


def _full(latents: Collection[ToDecode | None], few: int, most_rows: int) -> bool:
    return len(latents) >= few and sum(len(one.latent.data) for one in latents if one) >= most_rows


def refused_in(error: errors.DdibError, window: LatentWindow) -> list[Failed]:
    """Return the unanswered items that a peer's error names as refused in the call."""
    number = error.facts.get("item", "")
    reasons = error.refused | ({int(number): error.reason} if is_number(number) else {})
    due = [item for item in sorted(reasons) if window.answered(item) is not None]
    error.refused = {}
    return [Failed(item, error if str(item) == number else _like(error, item, reasons[item])) for item in due]


def _like(error: errors.DdibError, item: int, reason: str) -> errors.DdibError:
    """Return the refusal of another item, which the peer named in the error of the first."""
    kind = errors.error_class(reason)
    other = (kind if issubclass(kind, REFUSALS) else errors.InternalError)(
        hop=error.hop, facts={"item": item}, incident=error.incident
    )
    other.says = error.says
    return other


@dataclass(slots=True, eq=False)
class RemoteParty:
    """The model of an admitted peer, for one job."""

    remote: Remote
    contract: Contract
    request_id: str
    read: Callable[[bytes, int], Array]
    """Return the samples in an answer's file; raise unless they are so many."""
    release: Release
    receipt: Callable[[Exchanged], object]
    batch_rows: int
    tracing: Tracing = OFF
    trace: Span | None = None

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:  # noqa: ARG002
        raise errors.PolicyDenied(f"{self.remote.institution} encodes for its own clients alone")

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        control, peer = leg.control or Control(), self.remote.institution
        with LatentWindow(latents, control, self.batch_rows) as window:
            while window.has_more():
                with self.tracing.span("wire", kind=SpanKind.CLIENT, parent=self.trace, peer=peer) as span:
                    yield from self._one_call(window, leg, control, span)

    def _one_call(
        self, window: LatentWindow, leg: Leg, control: Control, span: Span
    ) -> Iterator[Decoded | Failed]:
        most = self.contract.limits.max_items_per_stream
        header = pb.DecodeHeader(
            contract_sha256=self.contract.digest,
            request_id=self.request_id,
            solver=settings_message(leg.settings),
            round_trip=leg.round_trip,
            items=most,
            guidance=guidance_to_pb(leg.guidance),
        )
        trace = span if self.tracing.shares_with(self.remote.institution) else None
        sending = window.sending(self.release, most)
        call = window.call = self.remote.decode(self.contract, header, sending, control, trace)
        try:
            with call:
                yield from self._answers(call, window, leg)
        except REFUSALS as error:
            # A refusal names its items; an error of the stream itself names none.
            failed = refused_in(error, window)
            if not failed:
                raise window.cause(error) from None
            yield from failed
        except errors.DdibError as error:
            raise window.cause(error) from None
        finally:
            window.end_call()
            exchanged = call.exchanged
            self.receipt(exchanged)
            span.set_attributes(
                named(
                    items_sent=exchanged.sent_items,
                    bytes_sent=exchanged.sent_bytes,
                    items_received=exchanged.received_items,
                    bytes_received=exchanged.received_bytes,
                )
            )

    def _answers(self, call: DecodeCall, window: LatentWindow, leg: Leg) -> Iterator[Decoded | Failed]:
        for answer in call:
            if isinstance(answer, pb.DecodeProgress):
                if leg.on_step is not None:
                    leg.on_step(answer.item, STAGES[answer.stage], answer.step, answer.steps)
                continue
            sent = window.answered(answer.item)
            assert sent is not None  # the call takes answers to what it sent
            yield self._outcome(answer, sent, leg)

    def _outcome(self, answer: PeerAnswer, sent: ToDecode, leg: Leg) -> Decoded | Failed:
        """Return the answer's content, or the failure of its item if it is unusable."""
        count = len(sent.latent.data)
        try:
            samples = self.read(answer.file, count)
            again = None if answer.latent is None else self._again(answer.latent, count, leg)
        except (errors.InputError, errors.LatentNotGaussian) as error:
            return Failed(answer.item, self.unusable(error))
        return Decoded(answer.item, samples, None, answer.seconds, again, answer.crossed)

    def unusable(self, error: errors.DdibError) -> errors.PeerFault:
        """Log an unusable answer, and return the error that blames the peer for it."""
        fault = at_fault(error, self.remote.hop)
        log.warning("request %s: %s", self.request_id, fault.detail)
        return fault

    def _again(self, returned: Whole, count: int, leg: Leg) -> Encoded:
        header = returned.header
        latent = Latent.from_bytes(returned.data, self.contract.latent_shape, sha256=header.tensor.sha256)
        if len(latent.data) != count:
            raise errors.MessageInvalid(f"a latent of {len(latent.data)} samples for one of {count}")
        return Encoded(header.item, latent, pass_latent(torch.from_numpy(latent.data.copy()), leg), 0.0)
