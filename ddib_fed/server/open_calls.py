"""The calls that run, each for a caller that is still admitted and keeps to its part.

A call is ended when its caller is no longer admitted, does not send its request, or takes nothing of what it is sent:
each wait for a caller holds a thread, and so every such wait is bounded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc

from ddib_fed.errors import DeadlineExceeded, RefusedError, TooManyStreams
from ddib_fed.trust.admission import Admission
from ddib_fed.trust.audit.refusals import Refusals

log = logging.getLogger(__name__)

REQUEST_S: Final = 20.0
"""A request is one small message: what servers give a client for its headers."""
IDLE_S: Final = 300.0
LOOK_EVERY_S: Final = 1.0
# A call is open until its caller has taken the answer, and takes some memory: far more than callers need that do.
OPEN_OF_ONE: Final = 512
OPEN_OF_OTHERS: Final = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Wait:
    """What the node waits for."""

    until: float
    fault: str


class OpenCall:
    """One call, while it runs."""

    def __init__(
        self,
        admission: Admission,
        context: grpc.ServicerContext,
        method: str,
        *,
        request_s: float,
        idle_s: float,
    ) -> None:
        self.admission = admission
        self.account = admission.account
        self.context = context
        self.method = method
        self._request_s = request_s
        self._idle_s = idle_s
        self._wait: _Wait | None = None

    @contextmanager
    def waiting_for_request(self) -> Iterator[None]:
        """Context while the request has not arrived."""
        fault = f"the caller did not send its request within {self._request_s:g} s"
        self._wait = _Wait(time.monotonic() + self._request_s, fault)
        try:
            yield
        finally:
            self._wait = None

    def checked(self, messages: Iterable[T], *, sent: bool = False) -> Iterator[T]:
        """The messages, for as long as the caller is admitted."""
        iterator = iter(messages)
        try:
            for message in iterator:
                self.admission.check()
                if sent:
                    self.answered()
                yield message
                if sent:
                    self._wait = None
        finally:
            if sent:
                self._wait = None
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def answered(self) -> None:
        fault = f"the caller took nothing of the answers for {self._idle_s:g} s"
        self._wait = _Wait(time.monotonic() + self._idle_s, fault)

    def fault(self, now: float) -> str | None:
        """What the caller has not done in time, once; None if nothing."""
        wait = self._wait
        if wait is None or now < wait.until:
            return None
        self._wait = None
        return wait.fault

    def end(self, sentence: str) -> None:
        call: Any = self.context._rpc_event.call  # type: ignore[attr-defined]  # noqa: SLF001
        call.cancel(grpc.StatusCode[DeadlineExceeded.status].value[0], sentence)


class OpenCalls:
    """All calls that run; safe to use from any thread."""

    def __init__(
        self,
        refusals: Refusals,
        *,
        request_s: float = REQUEST_S,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refusals = refusals
        self._request_s = request_s
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[OpenCall] = set()
        self._of: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="open-calls", daemon=True)

    @contextmanager
    def opened(self, admission: Admission, context: grpc.ServicerContext, method: str) -> Iterator[OpenCall]:
        """Context while a call of an admitted caller runs; it is open until its caller has taken all of the answer."""
        call = OpenCall(admission, context, method, request_s=self._request_s, idle_s=self._idle_s)
        most = OPEN_OF_ONE if admission.is_known else OPEN_OF_OTHERS
        with self._lock:
            if self._of[call.account] >= most:
                raise TooManyStreams(
                    f"{call.account} has {most} calls open", facts={"limit": most}, retry_after_s=1.0
                )
            self._of[call.account] += 1
            self._open.add(call)
        try:
            yield call
        finally:
            call.answered()
            if not context.add_callback(lambda: self._over(call)):
                self._over(call)

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def _over(self, call: OpenCall) -> None:
        with self._lock:
            self._open.discard(call)
            self._of[call.account] -= 1
            if not self._of[call.account]:
                del self._of[call.account]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it when it was started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self) -> int:
        """Cancel calls of callers that are no longer admitted, idle streams included; returns how many."""
        cancelled = 0
        for call in self._all():
            try:
                call.admission.check()
            except RefusedError as error:
                self._refusals.record(
                    call.context, "a running call", error, identity=call.admission.identity.uri
                )
                call.context.cancel()  # type: ignore[no-untyped-call]  # untyped in the stubs
                cancelled += 1
        return cancelled

    def look(self) -> int:
        """End the calls whose caller does not do its part in time; returns how many."""
        ended: Counter[tuple[str, str, str]] = Counter()
        now = self._clock()
        for call in self._all():
            fault = call.fault(now)
            if fault is not None:
                call.end(fault)
                ended[call.account, call.method, fault] += 1
        for (account, method, fault), times in ended.items():
            log.info("%s: ended %d calls of %s: %s", account, times, method, fault)
        return ended.total()

    def _all(self) -> list[OpenCall]:
        with self._lock:
            return list(self._open)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # the thread must outlive any failure
                log.exception("calls that wait for their callers could not be looked at")
