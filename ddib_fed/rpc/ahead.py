"""Takes the elements of an iterator on a thread of its own, before they are asked for.

Making the next element and sending, or using, the present one then overlap.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final, Generic, Self, TypeVar

_POLL_S: Final = 0.2

T = TypeVar("T")


class _End:
    """The iterator is over, by this error if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """The elements of an iterator in order; a context manager, which takes no more of them once it is left.

    Args:
        elements: Iterated, and a generator closed, on the thread. It should end, or raise, when what it serves ends:
            the thread cannot be interrupted while it waits for an element.
        most: Elements that wait to be asked for; one more may be in the thread's hand.
        name: Of the thread.
    """

    def __init__(self, elements: Iterable[T], most: int, name: str) -> None:
        self._elements = elements
        self._queue: queue.Queue[T | _End] = queue.Queue(most)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """No more elements are wanted; the thread ends with the element that it waits for."""
        self._left.set()

    def each(self, wait_s: Callable[[], float | None] = lambda: None) -> Iterator[T]:
        """The elements.

        Args:
            wait_s: How long the next one may take, in seconds; None for no limit. Asked before each.

        Raises:
            queue.Empty: One was not there in time.
            BaseException: What the iterator raises.
        """
        while True:
            element = self._queue.get(timeout=wait_s())
            if not isinstance(element, _End):
                yield element
            elif element.error is not None:
                raise element.error
            else:
                return

    def _read(self) -> None:
        end = _End(None)
        try:
            for element in self._elements:
                if not self._put(element):
                    if isinstance(self._elements, Generator):
                        self._elements.close()
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the elements are taken
            end = _End(error)
        self._put(end)

    def _put(self, element: T | _End) -> bool:
        while not self._left.is_set():
            try:
                self._queue.put(element, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False
