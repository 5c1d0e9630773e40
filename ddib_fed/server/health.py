"""gRPC's health service (`grpc.health.v1`), for the names that the node serves and for no other.

Whoever asks leaves nothing behind: the servicer of grpcio-health-checking keeps every name that somebody watched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Final

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from ddib_fed.errors import DeadlineExceeded, NotFoundError

WATCH_S: Final = 3600.0
"""Longest duration of one Watch; the client then calls again, as after `server.MAX_CONNECTION_AGE_S`."""


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Check, List and Watch of names that `set` has named; "" is the whole node."""

    def __init__(self, *, watch_s: float = WATCH_S) -> None:
        self._watch_s = watch_s
        self._changed = threading.Condition()
        self._serving: dict[str, bool] = {}
        self._closed = False

    def set(self, name: str, *, serving: bool) -> None:
        """Say whether a service is served now."""
        with self._changed:
            self._serving[name] = serving
            self._changed.notify_all()

    def statuses(self) -> dict[str, bool]:
        with self._changed:
            return dict(self._serving)

    def close(self) -> None:
        """End every Watch: the node stops."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def Check(self, request: pb.HealthCheckRequest, context: grpc.ServicerContext) -> pb.HealthCheckResponse:
        with self._changed:
            return _response(self._known(request.service))

    def List(self, request: pb.HealthListRequest, context: grpc.ServicerContext) -> pb.HealthListResponse:
        """See health.proto."""
        return pb.HealthListResponse(
            statuses={name: _response(serving) for name, serving in self.statuses().items()}
        )

    def Watch(
        self, request: pb.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.HealthCheckResponse]:
        """See health.proto; unlike there, a name that is not known is refused."""
        ended = threading.Event()
        if not context.add_callback(lambda: self._end(ended)):
            return
        until = time.monotonic() + self._watch_s
        said: bool | None = None
        while (now := self._after(request.service, said, ended, until)) is not None:
            said = now
            yield _response(said)

    def _known(self, name: str) -> bool:
        if name not in self._serving:
            raise NotFoundError("no service of this name is served here")
        return self._serving[name]

    def _end(self, ended: threading.Event) -> None:
        ended.set()
        with self._changed:
            self._changed.notify_all()

    def _after(self, name: str, said: bool | None, ended: threading.Event, until: float) -> bool | None:
        """What is other than what was said, when it is; None when nobody wants to know any more."""

        def over() -> bool:
            return ended.is_set() or self._closed

        with self._changed:
            self._known(name)
            left = max(0.0, until - time.monotonic())
            if not self._changed.wait_for(lambda: over() or self._serving[name] is not said, left):
                raise DeadlineExceeded(
                    "a Watch lasts no longer", hint="watch again", facts={"watch_s": f"{self._watch_s:g}"}
                )
            return None if over() else self._serving[name]


def _response(serving: bool) -> pb.HealthCheckResponse:
    status = pb.HealthCheckResponse
    return pb.HealthCheckResponse(status=status.SERVING if serving else status.NOT_SERVING)
