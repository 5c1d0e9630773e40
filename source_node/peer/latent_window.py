"""Latents between the encoder and one peer: the window, what a call sends of it, and the thread that fills it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.party import Labels, ToDecode
from ddib_fed.errors import Cancelled, DdibError, DeadlineExceeded
from ddib_fed.wire.latent import ApprovedLatent
from source_node.peer.decode_call import DecodeCall

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


class Sending:
    """What one call sends, on a thread of its own."""

    def __init__(
        self,
        window: LatentWindow,
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
        except (Stopped, Cancelled, DeadlineExceeded):
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
