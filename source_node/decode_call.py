"""One Decode call to a peer: latents go out and translations come back, each answer checked before it is used."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import grpc

from ddib_fed.engine.party import Control, Labels, ToDecode
from ddib_fed.errors import (
    Cancelled,
    ChunkCorrupt,
    DdibError,
    DeadlineExceeded,
    InputError,
    MessageInvalid,
    PeerUnreachable,
)
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import MAX_EVALUATIONS, Contract
from ddib_fed.protocol.details import at_fault, failure_of_peer
from ddib_fed.protocol.latent import ApprovedLatent, LatentOpener, anchor_from_pb
from ddib_fed.protocol.streams import Announced, Assembler, Whole, open_file
from ddib_fed.security.audit import Exchanged
from ddib_fed.v1 import common_pb2, decoding_pb2

# Beyond it, what a peer says of its own speed is not believed (and not recorded).
MAX_SECONDS = 1e7
# What a translation comes back as.
ANSWERS = {"point": common_pb2.MEDIA_TYPE_NPY, "picture": common_pb2.MEDIA_TYPE_PNG}
# Latents that are fit to leave and wait for the wire.
APPROVED_AHEAD = 1
STAGES = frozenset({"decode", "encode"})
M = TypeVar("M")


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
        header: decoding_pb2.DecodeHeader,
        sent: Sent,
        *,
        max_file_bytes: int,
        silence_s: float,
        control: Control,
        hop: str,
    ) -> None:
        self._call = call
        self._contract = contract
        self._round_trip = header.round_trip
        self._sent = sent
        self._max_file_bytes = max_file_bytes
        self._control = control
        self._hop = hop
        self._result: tuple[decoding_pb2.DecodedHeader, bytes] | None = None
        self._latent_opener = LatentOpener(contract, max_items=header.items)
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

    def __iter__(self) -> Iterator[decoding_pb2.DecodeProgress | PeerAnswer]:
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

    def _answers(self) -> Iterator[decoding_pb2.DecodeProgress | PeerAnswer]:
        for message in self._listener.listen(self._call):
            if message.WhichOneof("message") == "progress":
                progress = message.progress
                if progress.steps > MAX_EVALUATIONS or progress.step > progress.steps > 0:
                    raise MessageInvalid(f"step {progress.step} of {progress.steps}")
                # Anything else is only a sign of life.
                if progress.steps and progress.item in self._sent.sizes and progress.stage in STAGES:
                    yield progress
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

    def _take(self, whole: Whole) -> PeerAnswer | None:
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

    def _decoded(
        self, header: decoding_pb2.DecodedHeader, file: bytes, latent: Returned | None
    ) -> PeerAnswer:
        sent = self._sent.sizes.pop(header.item)
        self._sent.exchanged.received(len(file) + (0 if latent is None else len(latent.data)))
        seconds = header.seconds if header.seconds < MAX_SECONDS else 0.0
        return PeerAnswer(header.item, file, seconds, sent, latent)


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


# Latents that wait for the wire, in batches: the next one is whole when the wire is free.
WAITING_BATCHES = 1
FEW_WAITING = 2
# Latents without an answer, in batches: one that the peer computes, one that waits for it there, one on the way.
UNANSWERED_BATCHES = 3
FEW_UNANSWERED = 4
# A call that has nothing to send and waits for nothing ends, and the next latent begins another: a source that computes
# for long is not idle in the eyes of its peer (`idle_s` in its [limits], 300 s unless it was changed).
IDLE_S = 60.0
# How often a blocked stage looks whether it should still wait.
POLL_S = 0.2

Release = Callable[[Sequence[ToDecode]], Sequence[ApprovedLatent]]
"""Makes latents fit to leave; see `RemoteParty`."""


class Stopped(Exception):  # noqa: N818 - a signal between threads, no error
    """The call, or all of them, ended before the latents did."""


class LatentWindow:
    """Latents between whoever encodes and the peer: those that wait for the wire, and those without an answer."""

    def __init__(self, control: Control, batch_rows: int, *, idle_s: float = IDLE_S) -> None:
        self._control = control
        self._idle_s = idle_s
        self._batch_rows = batch_rows
        self._changed = threading.Condition()
        self._waiting: deque[ToDecode | None] = deque()
        self._unanswered: dict[int, ToDecode] = {}
        self._waiting_rows = self._unanswered_rows = 0
        self._stopped = False
        self.call = 0
        """Number of the call that may take latents."""

    def stop(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def put(self, latent: ToDecode | None) -> None:
        """Add a latent, or None after the last, once there is room."""
        most = WAITING_BATCHES * self._batch_rows
        with self._changed:
            while len(self._waiting) >= FEW_WAITING and self._waiting_rows >= most:
                self._wait()
            self._check()
            self._waiting.append(latent)
            self._waiting_rows += rows_of(latent)
            self._changed.notify_all()

    def first(self) -> ToDecode | None:
        """The first latent without an answer; None when all have one. Waits until that is known."""
        with self._changed:
            while not self._stopped and not self._unanswered and not self._waiting:
                self._wait()
            if self._stopped:  # the filler says why
                return None
            return next(iter(self._unanswered.values()), None) or self._waiting[0]

    def begin(self) -> list[ToDecode]:
        """A new call: the latents without an answer, which go first."""
        with self._changed:
            self.call += 1
            return list(self._unanswered.values())

    def end(self) -> None:
        """The call is over: its sender takes no more latents."""
        with self._changed:
            self.call += 1
            self._changed.notify_all()

    def take(self, call: int, label: Labels, most: int) -> list[ToDecode]:
        """The next latents for a call, at most `most`, once there are some and the peer has few enough."""
        with self._changed:
            idle = time.monotonic() + self._idle_s
            while self.call == call and (not self._waiting or self._full()):
                if self._waiting and not self._fits(label):
                    return []
                if self._waiting or self._unanswered:
                    idle = time.monotonic() + self._idle_s
                elif time.monotonic() > idle:
                    return []
                self._wait()
            if self.call != call:
                raise Stopped
            taken: list[ToDecode] = []
            while len(taken) < most and self._waiting and not self._full() and self._fits(label):
                latent = self._waiting.popleft()
                assert latent is not None
                taken.append(latent)
                self._waiting_rows -= rows_of(latent)
                self._unanswered[latent.number] = latent
                self._unanswered_rows += rows_of(latent)
            self._changed.notify_all()
            return taken

    def answered(self, number: int) -> ToDecode | None:
        """The latent that has its answer now; None when there was none without."""
        with self._changed:
            found = self._unanswered.pop(number, None)
            self._unanswered_rows -= rows_of(found)
            self._changed.notify_all()
            return found

    def _full(self) -> bool:
        return (
            len(self._unanswered) >= FEW_UNANSWERED
            and self._unanswered_rows >= UNANSWERED_BATCHES * self._batch_rows
        )

    def _fits(self, label: Labels) -> bool:
        following = self._waiting[0]
        return following is not None and following.label == label

    def _wait(self) -> None:
        self._check()
        self._changed.wait(POLL_S)

    def _check(self) -> None:
        self._control.check()
        if self._stopped:
            raise Stopped


def rows_of(latent: ToDecode | None) -> int:
    return 0 if latent is None else len(latent.latent.data)


def sending(
    window: LatentWindow,
    release: Release,
    fail: Callable[[BaseException], None],
    label: Labels,
    most: int,
) -> Iterator[ApprovedLatent | None]:
    """What a new call sends, read on gRPC's thread: latents, and None after the last; without it, it was broken off."""
    again = window.begin()  # at once, not when the first is asked for: the window ends the call by its number
    call = window.call

    def latents() -> Iterator[ApprovedLatent | None]:
        left, taken = most - len(again), again
        try:
            while True:
                approved = release(taken) if taken else []
                for number in {latent.number for latent in taken} - {each.item for each in approved}:
                    window.answered(number)
                yield from approved
                if not left or not (taken := window.take(call, label, left)):
                    break
                left -= len(taken)
        except (Stopped, Cancelled, DeadlineExceeded):
            return
        except Exception as error:  # noqa: BLE001 - raised again for whoever reads the answers
            fail(error)
            return
        yield None

    return latents()


class Filler:
    """Fills a window on a thread of its own; its error is kept for whoever reads the answers."""

    def __init__(self, work: Callable[[], None], window: LatentWindow) -> None:
        self._work = work
        self._window = window
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self.call: DecodeCall | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._window.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that reads the answers
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, whichever thread met it; the first one stays."""
        self._error = self._error or error
        self._window.stop()
        if (call := self.call) is not None:
            call.cancel()

    def reraise(self) -> None:
        if self._error is not None:
            raise self._error

    def cause(self, control: Control, found: DdibError) -> BaseException:
        """What ended a call that failed with `found`: what the filler met, or what the control says, else `found`."""
        if isinstance(found, DeadlineExceeded) and isinstance(self._error, DeadlineExceeded | None):
            return found  # which knows what the call waited for
        if self._error is not None:
            return self._error
        try:
            control.check()
        except DdibError as error:
            return error
        return found
