"""Takes the elements of an iterator on a thread of its own, before they are asked for.

Making the next element and sending, or using, the present one then overlap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Late(Exception):  # noqa: N818 - no failure of the iterator's
    """The next element was not there in time."""


class _End:
    """The iterator is over, by this error if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """The elements of an iterator in order; a context manager, which takes no more of them once it is left."""

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
