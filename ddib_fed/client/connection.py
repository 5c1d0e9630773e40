"""A client's channel to its source node, with retries while the node is away, or busy.

Only errors that may pass are retried, for a stated time since the last progress: those of a node that is away
(UnavailableError), for which the channel is recreated, so that a renewed certificate is used; and limits that were
reached (ExhaustedError), if the node says when to come back.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from ddib_fed.client.profile import Profile, renew_client
from ddib_fed.errors import Cancelled, DdibError, ExhaustedError, PeerUnreachable, UnavailableError
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.security import diagnosis, tls
from ddib_fed.security.pki import load_identity
from ddib_fed.v1 import translation_pb2_grpc

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long a node that was reached before may be away: a restart with a large model takes a minute."""
BUSY_PATIENCE_S = 600.0
"""How long a node may refuse because a limit is reached: others' jobs of some minutes are waited for."""
FIRST_CONTACT_S = 5.0
"""How long to try when the node has never answered: a wrong address or certificate does not fix itself."""
FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0
LOOK_EVERY_S = 1.0  # how often a connection looks whether its certificate is due for renewal

T = TypeVar("T")
OnWait = Callable[[DdibError, float], None]
Attempt = Callable[[translation_pb2_grpc.TranslationServiceStub], T]


class Patience:
    """Decides after a failure whether to try again, and waits."""

    def __init__(
        self, limit_s: float, busy_s: float, on_wait: OnWait | None, aborted: threading.Event
    ) -> None:
        self._limit_s = limit_s
        self._busy_s = busy_s
        self._on_wait = on_wait
        self._aborted = aborted
        self._heard = 0.0
        self.progress()

    def progress(self) -> None:
        self._since = time.monotonic()
        self._delay_s = FIRST_DELAY_S

    def wait(self, error: DdibError) -> None:
        """Wait before the next try: as long as the node asks, longer by some chance, so that not all come at once."""
        busy, asked = isinstance(error, ExhaustedError), error.retry_after_s or 0.0
        now = time.monotonic()
        waited = now - (self._since if busy else max(self._since, self._heard))
        left = (self._busy_s if busy else self._limit_s) - waited
        # A limit without a time is none that passes; one that passes after our patience is not waited for.
        if not (isinstance(error, UnavailableError) or (busy and 0 < asked <= left)) or left <= 0:
            if busy and asked:
                if waited >= 1:
                    error.detail = f"{error.detail}, and was still after {waited:.0f} s of trying again"
                hint = "the same command again when there is less to do; `ddib job list` shows your jobs"
                error.hint = error.hint or hint
            raise error
        delay = max(asked, 0.0 if busy else self._delay_s) * random.uniform(0.9, 1.4)  # noqa: S311 - jitter
        delay = min(left, delay if busy else max(asked, delay))
        if self._on_wait is not None:
            self._on_wait(error, delay)
        if self._aborted.wait(delay):
            raise Cancelled("ended while waiting for the node")
        if busy:
            # It was there: should it go away now, patience with that begins now, after the wait that it asked for.
            self._heard = time.monotonic()
        self._delay_s = min(self._delay_s * 2, LAST_DELAY_S)


class Connection:
    """The calls of `client.Client`, which documents the arguments."""

    def __init__(self, profile: Profile, *, patience_s: float, on_wait: OnWait | None) -> None:
        self.profile, self.hop = profile, profile.hop
        self.reached = False  # whether the node has answered
        self.clock_s: float | None = None
        """Seconds by which the node's clock is ahead of this one's, by the last call; None where it did not say."""
        self._patience_s, self._on_wait = patience_s, on_wait
        self._busy_s = BUSY_PATIENCE_S if patience_s > 0 else 0.0
        self._channel: grpc.Channel | None = None
        self._retired: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._looked = self._diagnosed = -math.inf
        self._expires = math.inf

    @property
    def aborted(self) -> bool:
        return self._aborted.is_set()

    def abort(self) -> None:
        """Abort running calls, which then raise Cancelled, as does every later call; callable from any thread."""
        self._aborted.set()
        self.drop()

    def stub(self) -> translation_pb2_grpc.TranslationServiceStub:
        """Return the service over the current channel, after renewing a certificate that is due."""
        if self.reached and time.monotonic() - self._looked >= LOOK_EVERY_S:
            self.renew()
        return translation_pb2_grpc.TranslationServiceStub(self.channel())

    def renew(self) -> None:
        """Renew the own certificate if it is due; a failure is only logged: the one there is may still do."""
        self._looked = time.monotonic()
        try:
            if renew_client(self.profile):
                log.info("renewed the certificate in %s", self.profile.pki_folder)
                with self._lock:
                    if self._retired is not None:
                        self._retired.close()
                    self._retired, self._channel = self._channel, None
        except (DdibError, OSError) as error:
            log.warning("the certificate in %s could not be renewed: %s", self.profile.pki_folder, error)

    def channel(self) -> grpc.Channel:
        with self._lock:
            if self.aborted:
                raise Cancelled("the connection was ended", hop=self.hop)
            if self._channel is None:
                self._expires = load_identity(self.profile.pki_folder).not_after.timestamp()
                self._channel = tls.channel(
                    self.profile.source_address,
                    server_name=self.profile.source_identity,
                    pki_folder=self.profile.pki_folder,
                    hop=self.hop,
                    own=True,
                    proxy=self.profile.way,
                )
            return self._channel

    def drop(self) -> None:
        """Close the channel; the next use creates another."""
        with self._lock:
            for channel in (self._channel, self._retired):
                if channel is not None:
                    channel.close()
            self._channel = self._retired = None

    def patience(self, *, while_busy: bool = True) -> Patience:
        limit = self._patience_s if self.reached else min(self._patience_s, FIRST_CONTACT_S)
        return Patience(limit, self._busy_s if while_busy else 0.0, self._on_wait, self._aborted)

    def failure(self, error: grpc.RpcError) -> DdibError:
        """Return the error of a failed call, with the hop; note that a node that gave a reason is reachable."""
        if self.aborted:
            return Cancelled("the connection was ended", hop=self.hop)
        failure = from_rpc_error(error, self.hop)
        if failure.incident:
            self.reached = True
        return failure

    def invoke(self, attempt: Attempt[T]) -> T:
        try:
            return attempt(self.stub())
        except PeerUnreachable as error:  # the channel was closed
            if not self.aborted:
                raise
            raise Cancelled("the connection was ended", hop=self.hop) from error

    @contextmanager
    def streaming(self, method: str, request: Message, most_s: float, **how: Any) -> Iterator[Any]:
        """Open a streaming call, which ends with the block."""
        timeout = max(1.0, min(most_s, self._expires - time.time()))
        call = self.invoke(lambda stub: getattr(stub, method)(request, timeout=timeout, **how))
        try:
            yield call
        finally:
            call.cancel()

    def call(self, attempt: Attempt[T], *, while_busy: bool = True) -> T:
        """Make an idempotent call, retrying until it succeeds or patience ends."""
        patience = self.patience(while_busy=while_busy)
        while True:
            try:
                answer = self.invoke(attempt)
            except grpc.RpcError as error:
                self.give_way(patience, error)
            else:
                self.reached = True
                self.clock_s = getattr(self._channel, "clock_s", None)
                return answer

    def give_way(self, patience: Patience, error: grpc.RpcError) -> None:
        """Wait for the node after a failed call; the channel is dropped, unless the node only said that it is busy."""
        sooner = self._sooner(self.failure(error))
        try:
            patience.wait(sooner)
        except DdibError as failure:
            raise self.explained(failure) from error
        finally:
            if not isinstance(sooner, ExhaustedError):
                self.drop()

    def explained(self, failure: DdibError) -> DdibError:
        """Return a failure with the cause of the failed connection, if the connection failed."""
        self._diagnosed = time.monotonic()
        return diagnosis.explained(failure, self.profile.diagnosis)

    def _sooner(self, failure: DdibError) -> DdibError:
        """Raise the cause once if the node never answered: a wrong address or certificate stays wrong."""
        if self.reached or self._diagnosed > -math.inf:
            return failure
        explanation = self.explained(failure)
        if "cause" in explanation.facts and explanation.facts["cause"] not in diagnosis.PASSING:
            raise explanation
        return failure
