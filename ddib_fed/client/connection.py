"""A client's channel to its source node, with retries while the node is away.

Only errors that may pass (UnavailableError) are retried, for a stated time since the last progress; the
channel is recreated for each try, so that a renewed certificate is used.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from ddib_fed.client.profile import Profile
from ddib_fed.errors import Cancelled, DdibError, UnavailableError
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.trust import tls
from ddib_fed.v1 import translation_pb2_grpc

PATIENCE_S = 120.0
"""How long a node that was reached before may be away: a restart with a large model takes a minute."""

FIRST_CONTACT_S = 5.0
"""How long to try when the node has never answered: a wrong address or certificate does not fix itself."""

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 5.0

T = TypeVar("T")
OnWait = Callable[[DdibError, float], None]
Attempt = Callable[[translation_pb2_grpc.TranslationServiceStub], T]


class Patience:
    """Decides after a failure whether to try again, and waits.

    Args:
        limit_s: Time since the last progress after which the failure is raised.
        on_wait: Called with the failure and the seconds until the next try.
        aborted: Set when waiting must end.
    """

    def __init__(self, limit_s: float, on_wait: OnWait | None, aborted: threading.Event) -> None:
        self._limit_s = limit_s
        self._on_wait = on_wait
        self._aborted = aborted
        self.progress()

    def progress(self) -> None:
        """Record progress: restart the time limit."""
        self._since = time.monotonic()
        self._delay_s = FIRST_DELAY_S

    def wait(self, error: DdibError) -> None:
        """Wait before the next try.

        Raises:
            DdibError: `error` itself, if a retry is pointless or the time is up.
            Cancelled: Another thread has ended the connection.
        """
        left = self._limit_s - (time.monotonic() - self._since)
        if not isinstance(error, UnavailableError) or left <= 0:
            raise error
        asked = error.retry_after_s or 0.0
        delay = min(left, max(asked, self._delay_s * random.uniform(0.75, 1.25)))  # noqa: S311 - jitter
        if self._on_wait is not None:
            self._on_wait(error, delay)
        if self._aborted.wait(delay):
            raise Cancelled("ended while waiting for the node")
        self._delay_s = min(self._delay_s * 2, LAST_DELAY_S)


class Connection:
    """One channel to the source node, created when first needed.

    Args:
        profile: Who we are and where the node is.
        patience_s: How long a node that was reached may be away.
        on_wait: Called when a call waits for the node.
    """

    def __init__(self, profile: Profile, *, patience_s: float, on_wait: OnWait | None) -> None:
        self.profile = profile
        self.hop = f"source {profile.institution}"
        self._patience_s = patience_s
        self._on_wait = on_wait
        self._channel: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._reached = False

    @property
    def aborted(self) -> bool:
        """Whether another thread has ended the connection."""
        return self._aborted.is_set()

    def abort(self) -> None:
        """Abort running calls and make every later call fail; for use from another thread."""
        self._aborted.set()
        with self._lock:
            if self._channel is not None:
                self._channel.close()

    def stub(self) -> translation_pb2_grpc.TranslationServiceStub:
        """The service over the current channel."""
        return translation_pb2_grpc.TranslationServiceStub(self.channel())

    def channel(self) -> grpc.Channel:
        """The current channel.

        Raises:
            FileMissing: The certificates are not where the profile says.
            Cancelled: Another thread has ended the connection.
        """
        with self._lock:
            if self.aborted:
                raise Cancelled("the connection was ended", hop=self.hop)
            if self._channel is None:
                self._channel = tls.channel(
                    self.profile.source_address,
                    server_name=self.profile.source_identity,
                    pki_folder=self.profile.pki_folder,
                    hop=self.hop,
                    own=True,
                )
            return self._channel

    def close(self) -> None:
        """Close the channel; the next use creates another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def patience(self) -> Patience:
        """The patience for one call: long if the node was reached before, otherwise short."""
        limit = self._patience_s if self._reached else min(self._patience_s, FIRST_CONTACT_S)
        return Patience(limit, self._on_wait, self._aborted)

    def reached(self) -> None:
        """Record that the node has answered."""
        self._reached = True

    @property
    def was_reached(self) -> bool:
        """Whether the node has ever answered."""
        return self._reached

    def failure(self, error: grpc.RpcError) -> DdibError:
        """The error of a failed call, with the hop; an answer with a reason shows that the node is reachable."""
        if self.aborted:
            return Cancelled("the connection was ended", hop=self.hop)
        failure = from_rpc_error(error, self.hop)
        if failure.incident:
            self._reached = True
        return failure

    def invoke(self, attempt: Attempt[T]) -> T:
        """Begin one call.

        Raises:
            Cancelled: Another thread has ended the connection.
        """
        try:
            return attempt(self.stub())
        except ValueError as error:  # what gRPC raises for a closed channel
            if not self.aborted:
                raise
            raise Cancelled("the connection was ended", hop=self.hop) from error

    def call(self, attempt: Attempt[T]) -> T:
        """Make an idempotent call, retrying until it succeeds or patience ends.

        Raises:
            DdibError: The node's refusal, or it cannot be reached.
        """
        patience = self.patience()
        while True:
            try:
                answer = self.invoke(attempt)
            except grpc.RpcError as error:
                self.give_way(patience, error)
            else:
                self.reached()
                return answer

    def give_way(self, patience: Patience, error: grpc.RpcError) -> None:
        """Wait for the node after a failed call, and drop the channel.

        Raises:
            DdibError: A retry is pointless, or patience ended.
        """
        try:
            patience.wait(self.failure(error))
        except DdibError as failure:
            raise failure from error
        finally:
            self.close()
