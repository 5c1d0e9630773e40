"""Channels whose answers are checked before they are used, as requests are; iterators that are read ahead.

Every channel of this package is wrapped.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

import grpc

from ddib_fed.errors import InputError, PeerUnreachable, UnknownFields
from ddib_fed.protocol.details import at_fault, clock_difference
from ddib_fed.protocol.messages import check

MAX_MESSAGE_BYTES: Final = 4 << 20
STUCK_S: Final = 3.0
"""What was received before a call's end is read at once: a reader that waits for so long after it is stuck."""
LOOK_EVERY_S: Final = 0.5

T = TypeVar("T")


class _Call:
    """A running call, or its future; everything but the answers is delegated."""

    def __init__(self, call: Any, channel: CheckedChannel) -> None:
        self._call = call
        self._channel = channel
        self.silence_s = math.inf
        """A reader that waits for longer cancels the call: a node that hangs keeps its connection alive."""
        self.gave_up = False
        self._waits_since = self._ended_at = math.inf

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._waits_since, self._ended_at = time.monotonic(), math.inf
        self._channel.watch(self)
        try:
            answer = next(self._call)
        finally:
            self._channel.unwatch(self)
        return self._channel.checked(answer)

    def is_stuck(self, now: float) -> bool:
        if self._call.is_active():
            return False
        self._ended_at = min(self._ended_at, now)
        return now - self._ended_at > STUCK_S

    def end_silence(self, now: float) -> None:
        if now - self._waits_since > self.silence_s and not self.gave_up:
            self.gave_up = True
            self._call.cancel()

    def result(self, timeout: float | None = None) -> Any:
        return self._channel.checked(self._call.result(timeout))

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        self._call.add_done_callback(lambda _: fn(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


grpc.Call.register(_Call)  # type: ignore[attr-defined]  # the stubs do not know that it is an ABC


@dataclass(frozen=True, slots=True)
class _Method:
    method: Any
    channel: CheckedChannel
    streams: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.streams:
            return _Call(self._open(self.method, *args, **kwargs), self.channel)
        answer, call = self._open(self.method.with_call, *args, **kwargs)
        self.channel.clock_s = clock_difference(call.trailing_metadata())
        return self.channel.checked(answer)

    def future(self, *args: Any, **kwargs: Any) -> _Call:
        return _Call(self._open(self.method.future, *args, **kwargs), self.channel)

    def _open(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except ValueError as error:  # what gRPC raises for a closed channel
            hop = self.channel.hop
            raise PeerUnreachable(f"the channel to {hop} was closed", hop=hop) from error


class CheckedChannel(grpc.Channel):
    """A channel whose answers are checked.

    While calls are read, a thread cancels those whose peer is silent for too long. gRPC 1.85 may end a stream without
    waking its reader: for such a reader the thread closes the channel, which wakes it, and which is `broken` then.
    """

    def __init__(self, channel: grpc.Channel, hop: str, *, own: bool) -> None:
        self._channel = channel
        self.hop, self._own = hop, own
        self._readers: set[_Call] = set()  # its methods are atomic
        self._watching = threading.Lock()
        self.broken = False
        self.clock_s: float | None = None

    def watch(self, call: _Call) -> None:
        self._readers.add(call)
        if self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch, name="stuck-calls", daemon=True).start()

    def unwatch(self, call: _Call) -> None:
        self._readers.discard(call)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            readers, now = list(self._readers), time.monotonic()
            for reader in readers:
                reader.end_silence(now)
            if any(reader.is_stuck(now) for reader in readers):
                self.broken = True
                self._channel.close()
                return
            if not readers:  # the next reader starts another thread, unless it came before the release
                self._watching.release()
                if not self._readers or not self._watching.acquire(blocking=False):
                    return

    def checked(self, answer: Any) -> Any:
        """The answer itself; a wrong one is the fault of the peer, or an input error where the node is our own."""
        try:
            check(answer)
        except InputError as error:
            if not self._own:
                raise at_fault(error, self.hop) from error
            error.hop = self.hop
            if isinstance(error, UnknownFields):
                error.hint = "ddib --version on both machines: the releases may differ"
            raise
        return answer

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_unary(*args, **kwargs), self, streams=False)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.stream_unary(*args, **kwargs), self, streams=False)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_stream(*args, **kwargs), self, streams=True)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.stream_stream(*args, **kwargs), self, streams=True)

    def subscribe(self, *args: Any, **kwargs: Any) -> None:
        self._channel.subscribe(*args, **kwargs)

    def unsubscribe(self, *args: Any, **kwargs: Any) -> None:
        self._channel.unsubscribe(*args, **kwargs)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _End:
    """The iterator is over, by this error if there is one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """The elements of an iterator in order, taken on a thread of its own before they are asked for.

    Making the next element and sending, or using, the present one overlap. A context manager, which takes no more of
    them once it is left. `most` is what elements may weigh together, 1 each if `weigh` does not say otherwise.
    """

    def __init__(
        self, elements: Iterable[T], most: int, name: str, *, weigh: Callable[[T], int] = lambda _: 1
    ) -> None:
        self._elements, self._most, self._weigh = elements, most, weigh
        self._waiting: deque[tuple[T | _End, int]] = deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._left = False
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    @property
    def ready(self) -> bool:
        return bool(self._waiting)

    def leave(self) -> None:
        """No more elements are wanted: whoever takes them gets none; the thread ends with the one that it waits for."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def each(
        self, wait_s: Callable[[], float | None] = lambda: None, late: Callable[[], object] = lambda: None
    ) -> Iterator[T]:
        """The elements; `late` raises, or lets the wait begin anew, where the next is not there after `wait_s`."""
        while True:
            with self._changed:
                in_time = self._changed.wait_for(lambda: bool(self._waiting) or self._left, wait_s())
                element, weight = self._waiting.popleft() if self._waiting else (_End(), 0)
                self._weight -= weight
                self._changed.notify_all()
            if not in_time:
                late()
            elif not isinstance(element, _End):
                yield element
                element = _End()  # forgotten before the next is asked for: it may be large
            elif element.error is not None:
                raise element.error
            else:
                return

    def _read(self) -> None:
        end = _End()
        try:
            for element in self._elements:
                if not self._put(element, self._weigh(element)):
                    if isinstance(self._elements, Generator):
                        self._elements.close()
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the elements are taken
            end = _End(error)
        self._put(end, 0)

    def _put(self, element: T | _End, weight: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._weight < self._most)
            if not self._left:
                self._waiting.append((element, weight))
                self._weight += weight
                self._changed.notify_all()
            return not self._left
