"""One Decode call to a peer: latents go out and translations come back, each answer checked before it is used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import grpc

from ddib_fed.bridge.control import Control
from ddib_fed.errors import (
    Cancelled,
    ChunkCorrupt,
    DdibError,
    DeadlineExceeded,
    InputError,
    MessageInvalid,
    PeerUnreachable,
)
from ddib_fed.rpc.calls import ReadAhead
from ddib_fed.rpc.faults import at_fault, failure_of_peer
from ddib_fed.trust.audit.log import Exchanged
from ddib_fed.v1 import common_pb2, decoding_pb2
from ddib_fed.wire.contracts.contract import MAX_EVALUATIONS, Contract
from ddib_fed.wire.latent import ApprovedLatent, LatentOpener, anchor_from_pb
from ddib_fed.wire.streams import Announced, Assembler, Whole, open_file

# Beyond it, what a peer says of its own speed is not believed (and not recorded).
MAX_SECONDS = 1e7
# What a translation comes back as.
ANSWERS = {"point": common_pb2.MEDIA_TYPE_NPY, "picture": common_pb2.MEDIA_TYPE_PNG}
# Latents that are fit to leave and wait for the wire.
APPROVED_AHEAD = 1
STAGES = frozenset({"decode", "encode"})
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the peer is with an item."""

    item: int
    stage: str
    step: int
    steps: int


class Returned(NamedTuple):
    """The latent of a translation: its bytes, of the digest that the peer announced, and otherwise unchecked."""

    data: memoryview
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One item from the peer: the translation's file, and its latent's bytes when that was asked for; unchecked."""

    item: int
    file: bytes
    seconds: float
    sent_bytes: int
    round_trip: Returned | None


class Sent:
    """What has gone to the peer and has not come back; filled on gRPC's thread, emptied on the reader's."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.complete = False
        self.exchanged = Exchanged()

    def requests(
        self, header: decoding_pb2.DecodeHeader, latents: Iterable[ApprovedLatent | None]
    ) -> Iterator[decoding_pb2.DecodeRequest]:
        """The call's messages, from latents that end with None when they are all."""
        yield decoding_pb2.DecodeRequest(header=header)
        with ReadAhead(latents, APPROVED_AHEAD, "approve") as ahead:
            for latent in ahead.each():
                if latent is None:
                    self.complete = True
                    return
                self.sizes[latent.item] = latent.size_bytes
                self.exchanged.sent(latent.size_bytes)
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
        sent: Sent,
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

    @property
    def exchanged(self) -> Exchanged:
        return self._sent.exchanged

    def cancel(self) -> None:
        self._call.cancel()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Progress | Answer]:
        try:
            yield from self._answers()
        except grpc.RpcError as error:
            if self._listener.gave_up:
                self._control.check()
                raise PeerUnreachable(
                    f"nothing was heard of {self._hop} for too long", hop=self._hop
                ) from error
            raise failure(error, self._hop, self._control) from error
        except (InputError, ChunkCorrupt) as error:
            raise at_fault(error, self._hop) from error
        if self._result is not None or self._sent.sizes or not self._sent.complete:
            raise at_fault(MessageInvalid("the stream ended before its last result"), self._hop)

    def _answers(self) -> Iterator[Progress | Answer]:
        for message in self._listener.listen(self._call):
            if message.WhichOneof("message") == "progress":
                progress = message.progress
                if progress.steps > MAX_EVALUATIONS or progress.step > progress.steps > 0:
                    raise MessageInvalid(f"step {progress.step} of {progress.steps}")
                # Anything else is only a sign of life.
                if progress.steps and progress.item in self._sent.sizes and progress.stage in STAGES:
                    yield Progress(progress.item, progress.stage, progress.step, progress.steps)
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
        anchor = anchor_from_pb(header)
        self._sent.exchanged.anchor = anchor or self._sent.exchanged.anchor
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

    def _take(self, whole: Whole) -> Answer | None:
        """A finished item, once its last part is there."""
        if whole.kind == "result":
            if self._round_trip:
                self._result = (whole.header, bytes(whole.data))
                return None
            return self._decoded(whole.header, bytes(whole.data), None)
        assert self._result is not None
        (header, file), self._result = self._result, None
        latent = Returned(whole.data, whole.header.tensor.sha256)
        return self._decoded(header, file, latent)

    def _decoded(self, header: decoding_pb2.DecodedHeader, file: bytes, latent: Returned | None) -> Answer:
        sent = self._sent.sizes.pop(header.item)
        self._sent.exchanged.received(len(file) + (0 if latent is None else len(latent.data)))
        seconds = header.seconds if header.seconds < MAX_SECONDS else 0.0
        return Answer(header.item, file, seconds, sent, latent)


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
