"""An admitted peer: what it says of itself, the contract with it, and Decode calls to it.

Nothing that a peer says is believed: each answer is checked before it is used. Latents of a call go out as they come
and translations come back as they are ready.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import grpc
from opentelemetry.trace import Span

from ddib_fed.engine.party import Control
from ddib_fed.errors import (
    Cancelled,
    ChunkCorrupt,
    DdibError,
    DeadlineExceeded,
    DomainNotFound,
    InputError,
    MessageInvalid,
    PeerUnreachable,
)
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import (
    MAX_EVALUATIONS,
    PROTOCOL,
    CalibrationTerms,
    Contract,
    ContractLimits,
    ContractSide,
    GuidanceTerms,
    confirm,
    require_protocol,
)
from ddib_fed.protocol.details import at_fault, checking_answers, failure_of_peer
from ddib_fed.protocol.latent import ApprovedLatent, LatentOpener, anchor_from_pb
from ddib_fed.protocol.messages import from_message, to_message
from ddib_fed.protocol.streams import Announced, Assembler, Whole, open_file
from ddib_fed.security import tls
from ddib_fed.security.audit import Exchanged
from ddib_fed.telemetry import is_taken, trace_entries
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc

UNARY_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 120.0
"""Longer than a few of the signs of life that a target sends (`target_node.stream.SIGN_OF_LIFE_S`)."""
MAX_SECONDS: Final = 1e7
"""Beyond it, what a peer says of its own speed is not believed (and not recorded)."""
ANSWERS: Final = {"point": common_pb2.MEDIA_TYPE_NPY, "picture": common_pb2.MEDIA_TYPE_PNG}
"""What a translation comes back as."""
APPROVED_AHEAD: Final = 1
"""Latents that are fit to leave and wait for the wire."""
STAGES: Final = frozenset({"decode", "encode"})
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0


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
        """Send latents as they come, None after the last, and read translations as they come."""
        call = DecodeCall(
            contract,
            header,
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
            control=control,
            hop=self.hop,
        )
        beside = trace_entries(trace if self.takes_traces else None)
        requests = call.requests(header, latents)
        try:
            call.answers = self._stub.Decode(requests, timeout=control.remaining_s(), **beside)
        except ValueError as error:
            raise self._closed() from error
        return call

    def _closed(self) -> PeerUnreachable:
        return PeerUnreachable(f"the channel to {self.hop} was closed", hop=self.hop)


# One call


class Returned(NamedTuple):
    """The latent of a translation: its bytes, of the digest that the peer announced, and otherwise unchecked."""

    data: memoryview
    sha256: bytes


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """One item from the peer: the translation's file, and its latent's bytes when that was asked for; unchecked."""

    item: int
    file: bytes
    seconds: float
    sent_bytes: int
    round_trip: Returned | None


class DecodeCall:
    """One Decode call, open for as long as its context: iterate over what comes back; `cancel` from any thread."""

    answers: grpc.CallIterator[decoding_pb2.DecodeResponse]

    def __init__(
        self,
        contract: Contract,
        header: decoding_pb2.DecodeHeader,
        *,
        max_file_bytes: int,
        silence_s: float,
        control: Control,
        hop: str,
    ) -> None:
        self.exchanged = Exchanged()
        self._contract = contract
        self._round_trip = header.round_trip
        self._max_file_bytes = max_file_bytes
        self._control = control
        self._hop = hop
        self._unanswered: dict[int, int] = {}
        """Sizes of the latents that have gone out; filled on gRPC's thread, emptied on the reader's."""
        self._all_sent = False
        self._result: tuple[decoding_pb2.DecodedHeader, bytes] | None = None
        self._latent_opener = LatentOpener(contract, max_items=header.items)
        self._assembler = Assembler({"result": self._open_result, "latent": self._open_latent})
        self._silence_s = silence_s
        self._waits_since: float | None = None
        self._over = threading.Event()
        self._gave_up = False
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        listener = threading.Thread(target=self._listen, name="listener", daemon=True)
        listener.start()
        self._exits.callback(self.cancel)
        self._exits.callback(listener.join)
        self._exits.callback(self._over.set)
        self._exits.enter_context(self._control.interrupting(self.cancel))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()

    def cancel(self) -> None:
        self.answers.cancel()  # type: ignore[no-untyped-call]

    def requests(
        self, header: decoding_pb2.DecodeHeader, latents: Iterable[ApprovedLatent | None]
    ) -> Iterator[decoding_pb2.DecodeRequest]:
        """The call's messages, from latents that end with None when they are all."""
        yield decoding_pb2.DecodeRequest(header=header)
        with ReadAhead(latents, APPROVED_AHEAD, "approve") as ahead:
            for latent in ahead.each():
                if latent is None:
                    self._all_sent = True
                    return
                self._unanswered[latent.item] = latent.size_bytes
                self.exchanged.sent(latent.size_bytes)
                yield from latent.stream(decoding_pb2.DecodeRequest)

    def _listen(self) -> None:
        """End the call when the peer was silent for too long: a node that hangs keeps its connection alive."""
        while not self._over.wait(min(1.0, self._silence_s / 4)):
            since = self._waits_since
            if since is not None and time.monotonic() - since > self._silence_s:
                self._gave_up = True
                self.cancel()
                return

    def __iter__(self) -> Iterator[decoding_pb2.DecodeProgress | PeerAnswer]:
        try:
            yield from self._read()
        except grpc.RpcError as error:
            if self._gave_up:
                self._control.check()
                raise PeerUnreachable(f"{self._hop} sent nothing for too long", hop=self._hop) from error
            raise failure(error, self._hop, self._control) from error
        except (InputError, ChunkCorrupt) as error:
            raise at_fault(error, self._hop) from error
        if self._result is not None or self._unanswered or not self._all_sent:
            raise at_fault(MessageInvalid("the stream ended before its last result"), self._hop)

    def _read(self) -> Iterator[decoding_pb2.DecodeProgress | PeerAnswer]:
        answers = iter(self.answers)
        while True:
            self._waits_since = time.monotonic()  # only the time that is spent waiting for a message counts
            message = next(answers, None)
            self._waits_since = None
            if message is None:
                break
            if message.WhichOneof("message") == "progress":
                progress = message.progress
                if message.data:
                    raise MessageInvalid("progress with bytes")
                if progress.steps > MAX_EVALUATIONS or progress.step > progress.steps > 0:
                    raise MessageInvalid(f"step {progress.step} of {progress.steps}")
                # Anything else is only a sign of life.
                if progress.steps and progress.item in self._unanswered and progress.stage in STAGES:
                    yield progress
                continue
            whole = self._assembler.feed(message)
            answer = self._take(whole) if whole is not None else None
            if answer is not None:
                yield answer
        self._assembler.end()

    def _open_result(self, header: decoding_pb2.DecodedHeader) -> Announced:
        if header.item not in self._unanswered:
            raise MessageInvalid(f"a result for item {header.item}, which is not due")
        if self._result is not None:
            raise MessageInvalid("two results where a latent was due")
        self.exchanged.anchor = anchor_from_pb(header) or self.exchanged.anchor
        kind = self._contract.target.sample_kind
        return open_file(header.file, max_bytes=self._max_file_bytes, accepted={ANSWERS[kind]})

    def _open_latent(self, header: decoding_pb2.LatentHeader) -> Announced:
        """The peer's own limits are in the contract: what was sent bounds what may come back."""
        if self._result is None or header.item != self._result[0].item:
            raise MessageInvalid("a latent without its result")
        if (size := header.tensor.size_bytes) != (sent := self._unanswered[header.item]):
            raise MessageInvalid(f"a latent of {size} bytes for one of {sent}")
        return self._latent_opener(header)

    def _take(self, whole: Whole) -> PeerAnswer | None:
        """A finished item, once its last part is there."""
        latent = None
        if whole.kind == "result":
            self._result = whole.header, bytes(whole.data)
            if self._round_trip:
                return None
        else:
            latent = Returned(whole.data, whole.header.tensor.sha256)
        assert self._result is not None
        (header, file), self._result = self._result, None
        self.exchanged.received(len(file) + (0 if latent is None else len(latent.data)))
        seconds = header.seconds if header.seconds < MAX_SECONDS else 0.0
        return PeerAnswer(header.item, file, seconds, self._unanswered.pop(header.item), latent)


def failure(error: grpc.RpcError, hop: str, control: Control | None = None) -> DdibError:
    """What a failed call means for the job: only its own control cancels it or lets its time run out."""
    found = failure_of_peer(error, hop)
    if control is not None:
        try:
            control.check()
        except DeadlineExceeded as late:
            late.facts["last"] = found.detail
            raise
    if isinstance(found, Cancelled | DeadlineExceeded):
        return PeerUnreachable(f"{hop} gave the call up, or did not answer in time ({found.reason})", hop=hop)
    return found


# All peers


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


@dataclass(slots=True)
class _Peer:
    """What is known of one."""

    answers: bool = False
    trying: str = ""
    not_before: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    reason: str = ""


class CircuitBreaker:
    """Which peers answer, and when an absent one is tried again; safe to use from any thread."""

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
