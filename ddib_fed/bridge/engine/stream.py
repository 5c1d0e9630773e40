"""Items in, outcomes out, in order, while an executor works beside both ends.

A feeder thread takes items from an iterable and begins each, so that a stated number of rows is in flight; whoever
reads gets outcomes in the order of the items, as soon as the first one is there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ddib_fed.bridge.control import Control

_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True, slots=True, eq=False)
class Begun(Generic[_Outcome]):
    """Work that was begun."""

    future: Future[Any]
    finish: Callable[[], list[_Outcome]]


def flowing(
    items: Iterable[_Item],
    begin: Callable[[_Item, Control], Begun[_Outcome]],
    *,
    rows: Callable[[_Item], int],
    most: int,
    control: Control | None,
    end: Callable[[], object] = lambda: None,
) -> Iterator[_Outcome]:
    """The outcomes of items that are begun ahead of whoever reads."""
    outer = control or Control()
    outer.check()
    own = Control(outer.deadline)
    feeder = _Feeder(items, lambda item: begin(item, own), rows, most)
    with outer.interrupting(lambda: feeder.interrupt(own, outer)):
        feeder.start()
        try:
            while (begun := feeder.first(own)) is not None:
                # An executor fails what is cancelled or late at its next step: the future is always answered.
                yield from begun.finish()
        finally:
            own.cancel()
            end()
            feeder.stop()


class _Feeder(Generic[_Item, _Outcome]):
    """Takes items and begins them, on its thread, while few enough rows are in flight."""

    def __init__(
        self,
        items: Iterable[_Item],
        begin: Callable[[_Item], Begun[_Outcome]],
        rows: Callable[[_Item], int],
        most: int,
    ) -> None:
        self._items, self._begin, self._rows_of, self._most = items, begin, rows, most
        self._changed = threading.Condition()
        self._begun: deque[tuple[Begun[_Outcome], int]] = deque()
        self._rows = 0
        self._error: BaseException | None = None
        self._ended = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def first(self, control: Control) -> Begun[_Outcome] | None:
        """The oldest work, once it is done; None after the last."""
        with self._changed:
            while not self._begun and not self._ended:
                control.check()
                self._changed.wait(control.remaining_s())
            if not self._begun:
                control.check()
                if self._error is not None:
                    raise self._error
                return None
            begun, rows = self._begun[0]
        begun.future.exception()  # waits; `finish` raises it
        with self._changed:
            self._begun.popleft()
            self._rows -= rows
            self._changed.notify_all()
        return begun

    def interrupt(self, own: Control, outer: Control) -> None:
        """Cancel the work for the outer control's reason, and wake the reader."""
        own.cancel(outer.error)
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Take no further item; returns when the one in hand is begun or given up."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        items = iter(self._items)
        try:
            while self._has_room():
                item = next(items)
                begun = self._begin(item), self._rows_of(item)
                with self._changed:
                    self._begun.append(begun)
                    self._rows += begun[1]
                    self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again for whoever reads
            self._error = error
        finally:
            self._end(items)

    def _has_room(self) -> bool:
        with self._changed:
            while self._rows >= self._most and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def _end(self, items: Iterator[_Item]) -> None:
        try:
            if isinstance(items, Generator):
                items.close()
        except BaseException as error:  # noqa: BLE001 - as above
            self._error = self._error or error
        with self._changed:
            self._ended = True
            self._changed.notify_all()
