"""Threads for calls, taken in turn by the connections whose calls wait: none waits behind all calls of another.

gRPC hands each call to a pool of threads in the order in which calls arrive, also those that their caller took back
meanwhile. With one queue, a caller of 10,000 calls delays everybody's Health by the time that all of them take.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

MOST_WAITING: Final = 1_024
"""Calls of one connection that wait for a thread; more come only from callers that take calls back as they make them,
because HTTP/2 limits how many are open at once (`server.MORE_OPEN_CALLS`)."""

P = ParamSpec("P")
T = TypeVar("T")


class _Work(NamedTuple):
    future: Future[Any]
    run: Callable[[], Any]


class FairPool(ThreadPoolExecutor):
    """A pool of threads for `grpc.server`."""

    def __init__(self, threads: int, on_crowd: Callable[[str], object]) -> None:
        super().__init__(threads, thread_name_prefix="rpc")
        self._on_crowd = on_crowd
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Work]] = {}
        self._turns: deque[str] = deque()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function when its connection's turn comes; what is of no call has a turn of its own."""
        future: Future[T] = Future()
        caller = _connection(args)
        with self._lock:
            waiting = self._waiting.setdefault(caller, deque())
            waiting.append(_Work(future, lambda: fn(*args, **kwargs)))
            if len(waiting) == 1:
                self._turns.append(caller)
            crowded = bool(caller) and len(waiting) > MOST_WAITING
        try:
            super().submit(self._run_next)
        except RuntimeError:
            self._cancel()
            raise
        if crowded:
            self._on_crowd(caller)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of every executor."""
        if cancel_futures:
            self._cancel()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _run_next(self) -> None:
        work = self._next()
        if work is None or not work.future.set_running_or_notify_cancel():
            return
        try:
            result = work.run()
        except BaseException as error:  # noqa: BLE001 - the future's business, as in every executor
            work.future.set_exception(error)
        else:
            work.future.set_result(result)

    def _next(self) -> _Work | None:
        with self._lock:
            if not self._turns:  # it was cancelled
                return None
            caller = self._turns.popleft()
            waiting = self._waiting[caller]
            work = waiting.popleft()
            if waiting:
                self._turns.append(caller)
            else:
                del self._waiting[caller]
        return work

    def _cancel(self) -> None:
        with self._lock:
            all_waiting = [work for waiting in self._waiting.values() for work in waiting]
            self._waiting.clear()
            self._turns.clear()
        for work in all_waiting:
            work.future.cancel()


def _connection(args: tuple[Any, ...]) -> str:
    """GRPC's name of the connection of the call that a task is for; empty for a task of no call."""
    for argument in args[:3]:
        call = getattr(argument, "call", None)
        if call is not None and hasattr(call, "peer"):
            peer = call.peer()
            return peer.decode() if isinstance(peer, bytes) else str(peer)
    return ""
