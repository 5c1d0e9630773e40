"""Work in several pieces over an executor: row ranges that are joined, legs that follow one another, and streams.

Of a stream a feeder thread takes items from an iterable and begins each, so that a stated number of rows is in flight;
whoever reads gets outcomes in the order of the items, as soon as the first one is there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.engine.executors import Executor
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Ending, Trajectory

_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")
_First = TypeVar("_First")
_Second = TypeVar("_Second")


def submit_ranges(
    executor: Executor, trajectory: Trajectory, *, control: Control | None, on_step: OnStep | None
) -> Ending:
    """Submit a trajectory as ranges of rows that a call takes; the future gives all rows, in their order."""
    most = max(1, executor.rows // trajectory.doubled) if executor.beside else executor.rows
    starts = range(0, trajectory.rows, most)
    if len(starts) == 1:
        return executor.submit(trajectory, control=control, on_step=on_step)
    tell = None if on_step is None else _Together(on_step, len(starts))
    futures: list[Ending] = []
    for start in starts:
        part = trajectory.part(start, min(start + most, trajectory.rows))
        futures.append(executor.submit(part, control=control, on_step=tell))
        if futures[-1].done() and futures[-1].exception() is not None:
            return futures[-1]
    return _joined(futures)


def then(first: Future[_First], following: Callable[[_First], Future[_Second]]) -> Future[_Second]:
    """What `following` makes of the first's result; no thread waits for it. An error of either is the future's."""
    whole: Future[_Second] = Future()

    def hand_over(second: Future[_Second]) -> None:
        error = second.exception()
        if error is None:
            whole.set_result(second.result())
        else:
            whole.set_exception(error)

    def go_on(done: Future[_First]) -> None:
        try:
            following(done.result()).add_done_callback(hand_over)
        except BaseException as error:  # noqa: BLE001 - only the future can carry it to its caller
            whole.set_exception(error)

    first.add_done_callback(go_on)
    return whole


def done(result: _First) -> Future[_First]:
    future: Future[_First] = Future()
    future.set_result(result)
    return future


class _Together:
    """Evaluations of several ranges as one count."""

    def __init__(self, on_step: OnStep, ranges: int) -> None:
        self._on_step, self._ranges = on_step, ranges
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, done: int, of: int) -> None:  # noqa: ARG002 - of one range
        with self._lock:
            self._done += 1
            self._on_step(self._done, self._ranges * of)


def _joined(futures: Sequence[Ending]) -> Ending:
    """All rows, after the fewest evaluations of any, or the first error there is."""
    whole = Ending()
    left = len(futures)
    failed = False
    lock = threading.Lock()

    def one_done(future: Future[Tensor]) -> None:
        nonlocal left, failed
        error = future.exception()
        with lock:
            left -= 1
            last = left == 0 and not failed
            first = error is not None and not failed
            failed = failed or error is not None
        if first:
            whole.set_exception(error)
        elif last:
            try:
                rows = torch.cat([each.result() for each in futures])
            except Exception as error:  # noqa: BLE001 - out of memory: a callback's error is only logged, and this is the only answer
                whole.set_exception(error)
            else:
                whole.end(rows, min(each.evaluations for each in futures))

    for future in futures:
        future.add_done_callback(one_done)
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class Begun(Generic[_Outcome]):
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
