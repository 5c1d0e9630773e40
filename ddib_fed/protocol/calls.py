"""Checks every answer of a server before it is used, as requests are checked; reads streams ahead.

Every channel of this package is wrapped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Self, TypeVar

import grpc

from ddib_fed.errors import InputError, UnknownFields
from ddib_fed.protocol.check import check
from ddib_fed.protocol.details import at_fault, clock_difference
from ddib_fed.protocol.streams import frame_deserialiser, frame_serialiser

STUCK_S: Final = 3.0
"""What was received before a call's end is read at once: a reader that waits for so long after it is stuck."""
LOOK_EVERY_S: Final = 0.5


class StuckCalls:
    """Watches the readers of one channel's streams; its thread runs while a reader waits."""

    def __init__(self, close: Callable[[], None], *, stuck_s: float = STUCK_S) -> None:
        self._close = close
        self._stuck_s = stuck_s
        self._lock = threading.Lock()
        self._reading: dict[int, Any] = {}
        self._ended: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self.found = False

    @contextmanager
    def reading(self, call: Any) -> Iterator[None]:
        """Context while a reader waits for the next answer of a call."""
        with self._lock:
            self._reading[id(call)] = call
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="stuck-calls", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._reading.pop(id(call), None)
                self._ended.pop(id(call), None)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                if not self._reading:
                    self._thread = None
                    return
                if not self._any_stuck():
                    continue
                self.found, self._thread = True, None
            self._close()
            return

    def _any_stuck(self) -> bool:
        now = time.monotonic()
        for key, call in self._reading.items():
            if not call.is_active():
                self._ended.setdefault(key, now)
        return any(now - since > self._stuck_s for since in self._ended.values())


T = TypeVar("T")


class _Call:
    """A running call, or its future; everything but the answers is delegated."""

    def __init__(self, call: Any, channel: CheckedChannel) -> None:
        self._call = call
        self._channel = channel

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with self._channel.stuck.reading(self._call):
            answer = next(self._call)
        return self._channel.checked(answer)

    def result(self, timeout: float | None = None) -> Any:
        return self._channel.checked(self._call.result(timeout))

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        self._call.add_done_callback(lambda _: fn(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


grpc.Call.register(_Call)  # type: ignore[attr-defined]  # the stubs do not know that it is an ABC


class _Method:
    """A method of a stub."""

    def __init__(self, method: Any, channel: CheckedChannel, *, streams: bool) -> None:
        self._method = method
        self._channel = channel
        self._streams = streams

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._streams:
            return _Call(self._method(*args, **kwargs), self._channel)
        answer, call = self._method.with_call(*args, **kwargs)
        self._channel.clock_s = clock_difference(call.trailing_metadata())
        return self._channel.checked(answer)

    def future(self, *args: Any, **kwargs: Any) -> _Call:
        return _Call(self._method.future(*args, **kwargs), self._channel)


class CheckedChannel(grpc.Channel):
    """A channel whose answers are checked."""

    def __init__(self, channel: grpc.Channel, hop: str, *, own: bool) -> None:
        self._channel = channel
        self._hop, self._own = hop, own
        self.stuck = StuckCalls(channel.close)
        self.clock_s: float | None = None

    def checked(self, answer: Any) -> Any:
        """The answer itself; a wrong one is the fault of the peer, or an input error where the node is our own."""
        try:
            check(answer)
        except InputError as error:
            if not self._own:
                raise at_fault(error, self._hop) from error
            error.hop = self._hop
            if isinstance(error, UnknownFields):
                error.hint = "ddib --version on both machines: the releases may differ"
            raise
        return answer

    @property
    def broken(self) -> bool:
        return self.stuck.found

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_unary(*args, **kwargs), self, streams=False)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        sent = {**kwargs, "request_serializer": frame_serialiser(kwargs.get("request_serializer"))}
        return _Method(self._channel.stream_unary(*args, **sent), self, streams=False)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        read = {**kwargs, "response_deserializer": frame_deserialiser(kwargs.get("response_deserializer"))}
        return _Method(self._channel.unary_stream(*args, **read), self, streams=True)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.Channel."""
        both = {
            **kwargs,
            "request_serializer": frame_serialiser(kwargs.get("request_serializer")),
            "response_deserializer": frame_deserialiser(kwargs.get("response_deserializer")),
        }
        return _Method(self._channel.stream_stream(*args, **both), self, streams=True)

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


class Late(Exception):  # noqa: N818 - no failure of the iterator's
    """The next element was not there in time."""


class _End:
    """The iterator is over, by this error if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """The elements of an iterator in order, taken on a thread of its own before they are asked for.

    Making the next element and sending, or using, the present one overlap. A context manager, which takes no more of
    them once it is left.
    """

    def __init__(
        self, elements: Iterable[T], most: int, name: str, *, weigh: Callable[[T], int] = lambda _: 1
    ) -> None:
        self._elements = elements
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._waiting: list[T | _End] = []
        self._taken: list[T | _End] = []
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
        return bool(self._taken or self._waiting)

    def leave(self) -> None:
        """No more elements are wanted: whoever takes them gets none; the thread ends with the one that it waits for."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def each(self, wait_s: Callable[[], float | None] = lambda: None) -> Iterator[T]:
        """The elements."""
        while True:
            for element in self._handed_over(wait_s()):
                if not isinstance(element, _End):
                    yield element
                elif element.error is not None:
                    raise element.error
                else:
                    return

    def _handed_over(self, wait_s: float | None) -> Iterator[T | _End]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting or self._left, wait_s):
                raise Late
            taken, self._waiting, self._weight = self._waiting or [_End(None)], [], 0
            self._changed.notify_all()
        # Each is forgotten before the next is asked for: an element may be large.
        taken.reverse()
        self._taken = taken
        while taken:
            yield taken.pop()

    def _read(self) -> None:
        end = _End(None)
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
                self._waiting.append(element)
                self._weight += weight
                self._changed.notify_all()
            return not self._left
