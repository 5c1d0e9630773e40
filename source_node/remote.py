"""Turns a peer's DecodingService into three verbs: describe, negotiate, decode.

Everything that the peer answers is checked before it is used; its errors come out as this project's, with the peer as
the hop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import grpc

from ddib_fed.bridge.control import Control
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import (
    Cancelled,
    ChunkCorrupt,
    ContractMismatch,
    DdibError,
    DeadlineExceeded,
    DomainNotFound,
    InputError,
    MessageInvalid,
    PeerUnreachable,
    UnknownFields,
)
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.rpc.settings import settings_message
from ddib_fed.trust import tls
from ddib_fed.v1 import common_pb2, decoding_pb2, decoding_pb2_grpc
from ddib_fed.wire.agreement import confirm
from ddib_fed.wire.chunks import Announced, Assembler, Whole, open_file
from ddib_fed.wire.contract import Contract, ContractLimits, ContractSide
from ddib_fed.wire.guidance import GuidanceTerms, guidance_to_pb
from ddib_fed.wire.latent import ApprovedLatent, LatentOpener
from ddib_fed.wire.mapping import from_message, to_message
from ddib_fed.wire.version import (
    OLDEST,
    SPOKEN,
    Version,
    highest_common,
    version_difference,
    versions_from_pb,
    versions_to_pb,
)

UNARY_TIMEOUT_S = 10.0
# Longer than a few of the signs of life that a target sends (`target_node.stream.SIGN_OF_LIFE_S`).
SILENCE_S = 120.0
# Beyond it, what a peer says of its own speed is not believed (and not recorded).
MAX_SECONDS = 1e7
# What a translation comes back as.
ANSWERS = {"point": common_pb2.MEDIA_TYPE_NPY, "picture": common_pb2.MEDIA_TYPE_PNG}
STAGES = frozenset({"decode", "encode"})
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the peer is with an item."""

    item: int
    stage: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """One item from the peer: the translation's file, and its latent's bytes when that was asked for; unchecked."""

    item: int
    file: bytes
    seconds: float
    sent_bytes: int
    round_trip: bytes | None


class Described(NamedTuple):
    """What a peer says of itself: its half of a contract, the version that both speak, what guidance it offers."""

    side: ContractSide
    version: Version | None
    guidance: GuidanceTerms | None


class _Sent:
    """What has gone to the peer and has not come back; filled on gRPC's thread, emptied on the reader's."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.complete = False

    def requests(
        self, header: decoding_pb2.DecodeHeader, latents: Iterable[ApprovedLatent | None]
    ) -> Iterator[decoding_pb2.DecodeRequest]:
        """The call's messages, from latents that end with None when they are all."""
        yield decoding_pb2.DecodeRequest(header=header)
        for latent in latents:
            if latent is None:
                self.complete = True
                return
            self.sizes[latent.item] = latent.size_bytes
            yield from latent.stream(decoding_pb2.DecodeRequest)


class _Listener:
    """Ends a call when nothing was heard for too long: a node that hangs keeps its connection alive."""

    def __init__(self, limit_s: float, end: Callable[[], object]) -> None:
        self._limit_s = limit_s
        self._end = end
        self._since: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self.gave_up = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def listen(self, call: Iterable[M]) -> Iterator[M]:
        """The call's messages; only the time that is spent waiting for one counts."""
        messages = iter(call)
        while True:
            self._since = time.monotonic()
            try:
                message = next(messages)
            except StopIteration:
                return
            finally:
                self._since = None
            yield message

    def _run(self) -> None:
        while not self._over.wait(min(1.0, self._limit_s / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._limit_s:
                self.gave_up = True
                self._end()
                return


class DecodeCall:
    """One Decode call, open for as long as its context: iterate over what comes back; `cancel` from any thread."""

    def __init__(
        self,
        call: grpc.CallIterator[decoding_pb2.DecodeResponse],
        contract: Contract,
        *,
        round_trip: bool,
        items: int,
        sent: _Sent,
        max_file_bytes: int,
        silence_s: float,
        control: Control,
        hop: str,
    ) -> None:
        self._call = call
        self._contract = contract
        self._round_trip = round_trip
        self._sent = sent
        self._max_file_bytes = max_file_bytes
        self._control = control
        self._hop = hop
        self._result: tuple[decoding_pb2.DecodedHeader, bytes] | None = None
        self._latent_opener = LatentOpener(contract, max_items=items)
        self._assembler = Assembler({"result": self._open_result, "latent": self._open_latent})
        self._listener = _Listener(silence_s, self.cancel)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        self._listener.start()
        self._exits.enter_context(self._control.interrupting(self.cancel))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._exits.close()
        self._listener.stop()
        self.cancel()

    def cancel(self) -> None:
        """End the call; harmless when it has ended."""
        self._call.cancel()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Progress | Decoded]:
        """What comes back.

        Raises:
            Cancelled, DeadlineExceeded: As the job's own control says, whatever the peer says.
            PeerUnreachable: The peer went away, gave the call up, or was silent for too long.
            MessageInvalid, ChunkCorrupt: The peer does not keep to the protocol.
            DdibError: As the peer says.
        """
        try:
            yield from self._answers()
        except grpc.RpcError as error:
            if self._listener.gave_up:
                self._control.check()
                raise PeerUnreachable(
                    f"nothing was heard of {self._hop} for too long", hop=self._hop
                ) from error
            raise _failure(error, self._hop, self._control) from error
        except (InputError, ChunkCorrupt) as error:
            error.hop = self._hop
            raise
        if self._result is not None or self._sent.sizes or not self._sent.complete:
            raise MessageInvalid("the peer ended before its last result", hop=self._hop)

    def _answers(self) -> Iterator[Progress | Decoded]:
        for message in self._listener.listen(self._call):
            if message.WhichOneof("message") == "progress":
                progress = message.progress
                # Anything else is only a sign of life.
                if progress.steps and progress.item in self._sent.sizes and progress.stage in STAGES:
                    step = min(progress.step, progress.steps)
                    yield Progress(progress.item, progress.stage, step, progress.steps)
                continue
            whole = self._assembler.feed(message)
            decoded = self._take(whole) if whole is not None else None
            if decoded is not None:
                yield decoded
        self._assembler.end()

    def _open_result(self, header: decoding_pb2.DecodedHeader) -> Announced:
        if header.item not in self._sent.sizes:
            raise MessageInvalid(f"a result for item {header.item}, which is not due")
        if self._result is not None:
            raise MessageInvalid("two results where a latent was due")
        kind = self._contract.target.sample_kind
        return open_file(header.file, max_bytes=self._max_file_bytes, accepted={ANSWERS[kind]})

    def _open_latent(self, header: decoding_pb2.LatentHeader) -> Announced:
        """The peer's own limits are in the contract: what was sent bounds what may come back."""
        if self._result is None or header.item != self._result[0].item:
            raise MessageInvalid("a latent without its result")
        if header.tensor.size_bytes != self._sent.sizes[header.item]:
            raise MessageInvalid(
                f"a latent of {header.tensor.size_bytes} bytes for one of {self._sent.sizes[header.item]}"
            )
        return self._latent_opener(header)

    def _take(self, whole: Whole) -> Decoded | None:
        """A finished item, once its last part is there."""
        if whole.kind == "result":
            if self._round_trip:
                self._result = (whole.header, whole.data)
                return None
            return self._decoded(whole.header, whole.data, None)
        assert self._result is not None
        (header, file), self._result = self._result, None
        return self._decoded(header, file, whole.data)

    def _decoded(self, header: decoding_pb2.DecodedHeader, file: bytes, latent: bytes | None) -> Decoded:
        sent = self._sent.sizes.pop(header.item)
        seconds = header.seconds if 0 <= header.seconds < MAX_SECONDS else 0.0
        return Decoded(header.item, file, seconds, sent, latent)


@contextmanager
def _named(hop: str) -> Iterator[None]:
    """What is found wrong with an answer names who gave it."""
    try:
        yield
    except (InputError, ContractMismatch, ChunkCorrupt) as error:
        error.hop = hop
        raise


def _failure(error: grpc.RpcError, hop: str, control: Control | None = None) -> DdibError:
    """What a failed call means for the job: only its own control cancels it or lets its time run out.

    Raises:
        DdibError: As `control` says.
    """
    if control is not None:
        control.check()
    found = from_rpc_error(error, hop)
    if isinstance(found, Cancelled | DeadlineExceeded):
        return PeerUnreachable(f"{hop} gave the call up, or did not answer in time ({found.reason})", hop=hop)
    return found


def _too_old(error: DdibError, own: ContractSide, hop: str) -> DdibError:
    """What a peer means that does not know the fields of our side: it is of an older release."""
    if not isinstance(error, UnknownFields) or own.needs <= OLDEST:
        return error
    older = [version for version in SPOKEN if version < own.needs]
    return ContractMismatch(
        f"{hop} does not know what protocol {own.needs} added for pictures and classes",
        hop=hop,
        differences=(version_difference(SPOKEN, older),),
    )


class Remote:
    """One admitted peer.

    Args:
        institution: Its institution.
        channel: To its node.
        max_file_bytes: Of one translation.
        silence_s: How long nothing may be heard in a Decode call.
    """

    def __init__(
        self, institution: str, channel: grpc.Channel, *, max_file_bytes: int, silence_s: float = SILENCE_S
    ) -> None:
        self.institution = institution
        self.hop = f"target {institution}"
        self._stub = decoding_pb2_grpc.DecodingServiceStub(channel)
        self._max_file_bytes = max_file_bytes
        self._silence_s = silence_s

    def describe(self, timeout_s: float = UNARY_TIMEOUT_S) -> Described:
        """What the peer decodes to.

        Raises:
            MessageInvalid: It says what the protocol does not allow.
            DdibError: As the peer says, or PeerUnreachable.
        """
        request = decoding_pb2.DescribeDomainRequest(versions=versions_to_pb())
        try:
            answer = self._stub.DescribeDomain(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _failure(error, self.hop) from error
        except ValueError as error:
            raise self._closed() from error
        with _named(self.hop):
            version = highest_common(SPOKEN, versions_from_pb(answer.versions))
            limits = from_message(answer.limits, ContractLimits)
            side = from_message(answer.side, ContractSide)
        if side.institution != self.institution:
            raise MessageInvalid(
                f"the node of {self.institution} calls itself {side.institution}", hop=self.hop
            )
        return Described(side, version, limits.guidance)

    def negotiate(self, own: ContractSide, domain: str, control: Control) -> Contract:
        """Agree with the peer, believing nothing that was not computed here.

        Raises:
            ContractMismatch: Each differing field, both values, and what to do.
            DomainNotFound: The peer serves another domain.
            MessageInvalid: The answer holds what the protocol does not allow.
            DdibError: As the peer says, or PeerUnreachable.
        """
        request = decoding_pb2.NegotiateContractRequest(
            versions=versions_to_pb(), source=to_message(own, decoding_pb2.ContractSide)
        )
        remaining = control.remaining_s()
        timeout = UNARY_TIMEOUT_S if remaining is None else min(UNARY_TIMEOUT_S, remaining)
        try:
            call = self._stub.NegotiateContract.future(request, timeout=timeout)
            with control.interrupting(call.cancel):
                answer = call.result()
        except grpc.FutureCancelledError as error:
            control.check()
            raise self._closed() from error
        except grpc.RpcError as error:
            raise _too_old(_failure(error, self.hop, control), own, self.hop) from error
        except ValueError as error:
            raise self._closed() from error
        with _named(self.hop):
            contract = confirm(answer, source=own, target_institution=self.institution)
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
        latents: Iterable[ApprovedLatent | None],
        control: Control,
        target_class: int | None = None,
        guidance: Guidance = UNGUIDED,
    ) -> DecodeCall:
        """Send latents as they come and read translations as they come.

        Args:
            contract: What was negotiated.
            request_id: Names the job to the peer.
            solver: For the peer's leg.
            round_trip: Whether the latent of each translation comes back.
            items: How many latents there are at most.
            latents: They, and None after the last; what ends without it was broken off.
            control: Cancelling ends the call.
            target_class: The class of the target's that all are decoded to; None for none.
            guidance: How the peer guides decoding; the contract's version must have it.

        Raises:
            PeerUnreachable: The channel was closed.
        """
        header = decoding_pb2.DecodeHeader(
            contract_sha256=contract.digest,
            request_id=request_id,
            solver=settings_message(solver),
            round_trip=round_trip,
            items=items,
            target_class=target_class,
            guidance=guidance_to_pb(guidance),
        )
        sent = _Sent()
        try:
            call = self._stub.Decode(sent.requests(header, latents), timeout=control.remaining_s())
        except ValueError as error:
            raise self._closed() from error
        return DecodeCall(
            call,
            contract,
            round_trip=round_trip,
            items=items,
            sent=sent,
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
            control=control,
            hop=self.hop,
        )

    def _closed(self) -> PeerUnreachable:
        """The channel was closed under the call: the peer was removed, or the certificate renewed long ago."""
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
        """The peer, over a channel that matches the certificates as they are now.

        Raises:
            PeerNotFound: No such peer was admitted.
        """
        return Remote(
            institution,
            self._channels.get(institution),
            max_file_bytes=self._max_file_bytes,
            silence_s=self._silence_s,
        )

    def refresh(self) -> None:
        """End the calls to peers that were removed."""
        self._channels.refresh()

    def close(self) -> None:
        """Close the channels."""
        self._channels.close()
