"""An admitted peer as a `Party`: latents go out over Decode calls while the next ones are encoded.

A call carries many latents of one class. An item that the peer refuses ends its call; the items behind it that have no
answer yet go into the next one as they are.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Self

import torch

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
    Cancelled,
    DdibError,
    DeadlineExceeded,
    InputError,
    LatentNotGaussian,
    MessageInvalid,
    PolicyDenied,
)
from ddib_fed.latent import Latent
from ddib_fed.wire.contract import Contract, ContractSide
from ddib_fed.wire.latent import ApprovedLatent
from source_node.decode_call import Answer, DecodeCall, Progress
from source_node.remote import Remote

# Latents that wait for the wire, in batches: the next one is whole when the wire is free.
WAITING_BATCHES = 1
FEW_WAITING = 2
# Latents without an answer, in batches: one that the peer computes, one that waits for it there, one on the way.
UNANSWERED_BATCHES = 3
FEW_UNANSWERED = 4
# How often a blocked stage looks whether it should still wait.
POLL_S = 0.2

log = logging.getLogger(__name__)

Release = Callable[[Sequence[ToDecode]], Sequence[ApprovedLatent]]
"""Makes latents fit to leave; see `RemoteParty`."""


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
    """The model of an admitted peer, for one job.

    Args:
        remote: The peer.
        contract: What was negotiated with it.
        request_id: Names the job to the peer.
        read: The samples in the file of an answer, given also how many there must be; raises InputError.
        release: Makes latents fit to leave, each time before they are sent, on a thread of the call; one that it
            leaves out is not sent. What it raises ends the job.
        batch_rows: Samples of a batch: how far latents run ahead of the answers is counted in batches.
    """

    def __init__(
        self,
        remote: Remote,
        contract: Contract,
        *,
        request_id: str,
        read: Callable[[bytes, int], Array],
        release: Release,
        batch_rows: int,
    ) -> None:
        self._batch_rows = batch_rows
        self._remote = remote
        self._contract = contract
        self._request_id = request_id
        self._read = read
        self._release = release

    def describe(self) -> Description:
        """See `Party`."""
        return description_of(self._contract.target)

    def encode_each(self, items: Iterable[ToEncode], leg: Leg) -> Iterator[Encoded | Failed]:  # noqa: ARG002
        """See `Party`; a node encodes for its own clients alone.

        Raises:
            PolicyDenied: Always.
        """
        raise PolicyDenied(f"{self._remote.institution} encodes for its own clients alone")

    def decode_each(self, latents: Iterable[ToDecode], leg: Leg) -> Iterator[Decoded | Failed]:
        """See `Party`; the latents are taken on a thread of their own, a few ahead of the answers.

        Raises:
            PeerUnreachable: The peer went away, gave a call up, or was silent for too long.
            MessageInvalid, ChunkCorrupt: It does not keep to the protocol.
            DdibError: As the peer says, as `latents` raises, or as the leg's control says.
        """
        window = _Window(leg.control or Control(), self._batch_rows)
        with _Filler(lambda: self._fill(latents, window), window) as filler:
            while (first := window.first()) is not None:
                yield from self._one_call(first.label, window, filler, leg)
            filler.reraise()

    def _fill(self, latents: Iterable[ToDecode], window: _Window) -> None:
        try:
            for latent in latents:
                window.put(latent)
            window.put(None)
        finally:
            if isinstance(latents, Generator):
                latents.close()

    def _one_call(
        self, label: Labels, window: _Window, filler: _Filler, leg: Leg
    ) -> Iterator[Decoded | Failed]:
        most = self._contract.limits.max_items_per_stream
        control = leg.control or Control()
        sending = _Sending(window, self._release, filler.fail, label, most)
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
        )
        filler.call = call
        try:
            with call:
                yield from self._answers(call, window, leg)
        except (InputError, LatentNotGaussian) as error:
            number = error.facts.get("item", "")
            refused = window.answered(int(number)) if number.isdecimal() else None
            if refused is None:
                raise filler.cause(control) or error from None
            yield Failed(refused.number, error)
        except DdibError as error:
            raise filler.cause(control) or error from None
        finally:
            filler.call = None
            window.end()

    def _answers(self, call: DecodeCall, window: _Window, leg: Leg) -> Iterator[Decoded | Failed]:
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

    def unusable(self, error: DdibError) -> MessageInvalid:
        """What is said of an answer that cannot be used; the reason is the peer's, not the client's input."""
        peer = self._remote.institution
        log.warning("request %s: an answer of %s is refused: %s", self._request_id, peer, error.detail)
        return MessageInvalid(
            f"{peer} answered with what cannot be used: {error.detail}",
            hop=self._remote.hop,
            facts={"peer": peer, "answer": error.reason},
        )

    def _again(self, answer: Answer, count: int, leg: Leg) -> Encoded:
        returned = answer.round_trip
        assert returned is not None  # whoever asks has seen it
        latent = Latent.from_bytes(
            returned.data, self._contract.sample_shape, self._contract.wire_type, sha256=returned.sha256
        )
        if len(latent.data) != count:
            raise MessageInvalid(f"a latent of {len(latent.data)} samples for one of {count}")
        statistics = pass_latent(torch.from_numpy(latent.data.copy()), leg)
        return Encoded(answer.item, latent, statistics, 0.0)


class _Stopped(Exception):  # noqa: N818 - a signal between the threads of this module
    """The call, or all of them, ended before the latents did."""


class _Window:
    """Latents between whoever encodes and the peer: those that wait for the wire, and those without an answer.

    Args:
        control: Ends the waiting.
        batch_rows: Samples of a batch.
    """

    def __init__(self, control: Control, batch_rows: int) -> None:
        self._control = control
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
            self._waiting_rows += _rows(latent)
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
        """The next latents for a call, at most `most`, once there are some and the peer has few enough.

        Empty when the call's last one was taken.

        Raises:
            _Stopped: The call is over.
        """
        with self._changed:
            while self.call == call and (not self._waiting or self._full()):
                if self._waiting and not self._fits(label):
                    return []
                self._wait()
            if self.call != call:
                raise _Stopped
            taken: list[ToDecode] = []
            while len(taken) < most and self._waiting and not self._full() and self._fits(label):
                latent = self._waiting.popleft()
                assert latent is not None
                taken.append(latent)
                self._waiting_rows -= _rows(latent)
                self._unanswered[latent.number] = latent
                self._unanswered_rows += _rows(latent)
            self._changed.notify_all()
            return taken

    def answered(self, number: int) -> ToDecode | None:
        """The latent that has its answer now; None when there was none without."""
        with self._changed:
            found = self._unanswered.pop(number, None)
            self._unanswered_rows -= _rows(found)
            self._changed.notify_all()
            return found

    def _full(self) -> bool:
        """Whether the peer has as many latents as it may."""
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
            raise _Stopped


def _rows(latent: ToDecode | None) -> int:
    return 0 if latent is None else len(latent.latent.data)


class _Sending:
    """What one call sends, on a thread of its own.

    Args:
        window: Where the latents come from.
        release: Makes them fit to leave.
        fail: Told what keeps them from it.
        label: The class of the call.
        most: Latents of one call.
    """

    def __init__(
        self,
        window: _Window,
        release: Release,
        fail: Callable[[BaseException], None],
        label: Labels,
        most: int,
    ) -> None:
        self._window, self._release, self._fail = window, release, fail
        self._label, self._most = label, most
        self._again = window.begin()
        self._call = window.call

    def latents(self) -> Iterator[ApprovedLatent | None]:
        """The latents, and None after the last; without None the call was broken off."""
        try:
            yield from self._released(self._again)
            left = self._most - len(self._again)
            while left and (taken := self._window.take(self._call, self._label, left)):
                left -= len(taken)
                yield from self._released(taken)
        except (_Stopped, Cancelled, DeadlineExceeded):
            return
        except Exception as error:  # noqa: BLE001 - raised again for whoever reads the answers
            self._fail(error)
            return
        yield None

    def _released(self, latents: Sequence[ToDecode]) -> Iterator[ApprovedLatent]:
        approved = self._release(latents) if latents else []
        for number in {latent.number for latent in latents} - {each.item for each in approved}:
            self._window.answered(number)
        yield from approved


class _Filler:
    """Fills a window on a thread of its own; its error is kept for whoever reads the answers."""

    def __init__(self, work: Callable[[], None], window: _Window) -> None:
        self._work = work
        self._window = window
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self.call: DecodeCall | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """No more latents are wanted; the item in hand is finished and stored first."""
        self._window.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except _Stopped:
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
        """Raise what ended the filling, if something did."""
        if self._error is not None:
            raise self._error

    def cause(self, control: Control) -> BaseException | None:
        """What the filler met, from which a call's own error only follows; or what the control says."""
        if self._error is not None:
            return self._error
        try:
            control.check()
        except DdibError as error:
            return error
        return None
