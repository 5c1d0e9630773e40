"""The operator's service on a Unix socket of mode 0600, and the small client that `ddib status` uses."""

from __future__ import annotations

import os
import shlex
import socket as socketlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from ddib_fed.errors import ConfigError, PeerUnreachable, UnavailableError
from ddib_fed.files import check_private_folder
from ddib_fed.node.config import MAX_SOCKET_PATH, NodeConfig
from ddib_fed.node.connections import HANDSHAKE_TIMEOUT_S
from ddib_fed.protocol.calls import CheckedChannel
from ddib_fed.protocol.details import from_rpc_error, status_of
from ddib_fed.v1 import admin_pb2 as pb
from ddib_fed.v1 import admin_pb2_grpc as rpc

CALL_TIMEOUT_S = 10.0
LONGEST_LINE = 4_000
"""As admin.proto says; longer lines are cut."""
# Silent connections may hold only a few of the node's open files, for a short time.
OPTIONS = (
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1000),
    ("grpc.max_allowed_incoming_connections", 32),
)
R = TypeVar("R")


class Operated(Protocol):
    """What the operator's service asks of a node."""

    def status(self) -> pb.StatusResponse: ...
    def reload(self) -> list[str]: ...
    def request_drain(self) -> int: ...
    def workers(self) -> pb.WorkersResponse: ...


class AdminServicer(rpc.AdminServiceServicer):
    """Answers for a node: the daemon."""

    def __init__(self, node: Operated) -> None:
        self._node = node

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusResponse:
        answer = self._node.status()
        answer.state = _line(answer.state)
        for peer in answer.peers:
            peer.problem = _line(peer.problem)
        return answer

    def Reload(self, request: pb.ReloadRequest, context: grpc.ServicerContext) -> pb.ReloadResponse:
        return pb.ReloadResponse(changes=map(_line, self._node.reload()))

    def Drain(self, request: pb.DrainRequest, context: grpc.ServicerContext) -> pb.DrainResponse:
        return pb.DrainResponse(running_jobs=self._node.request_drain())

    def Workers(self, request: pb.WorkersRequest, context: grpc.ServicerContext) -> pb.WorkersResponse:
        answer = self._node.workers()
        answer.problem = _line(answer.problem)
        return answer


def _line(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 4] + " ..."


def serve_admin(
    socket: Path, servicer: AdminServicer, interceptors: list[grpc.ServerInterceptor[Any, Any]]
) -> grpc.Server:
    """Start the operator's service on `socket`, which only this user can open."""
    check_alone(socket)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    pool = ThreadPoolExecutor(2, thread_name_prefix="admin")
    server = grpc.server(pool, interceptors=interceptors, options=OPTIONS)
    rpc.add_AdminServiceServicer_to_server(servicer, server)
    before = os.umask(0o177)
    try:
        server.add_secure_port(f"unix:{socket}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
    except RuntimeError as error:
        raise ConfigError(
            f"the operator's socket {socket} cannot be bound", hint="a shorter [node] state path"
        ) from error
    finally:
        os.umask(before)
    server.start()
    return server


def stop_admin(server: grpc.Server, socket: Path) -> None:
    server.stop(None).wait()
    socket.unlink(missing_ok=True)


def check_alone(socket: Path) -> None:
    """Whether the operator's service could be started on `socket`."""
    check_socket(socket)
    if answers(socket):
        raise ConfigError(
            f"another node is running on {socket.parent}",
            hint="ddib status, or give this node a state folder of its own",
        )


def check_socket(socket: Path) -> None:
    """Whether `socket` can be the operator's."""
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the operator's socket {socket} has a path of more than {MAX_SOCKET_PATH} bytes",
            hint="a shorter [node] state path, or a shorter TMPDIR",
        )
    check_private_folder(socket.parent)
    if socket.exists() and not socket.is_socket():
        raise ConfigError(f"{socket} is no socket", hint=f"move {socket} away")


def answers(socket: Path) -> bool:
    """Whether a process listens on the socket; one that a kill left behind does not."""
    with socketlib.socket(socketlib.AF_UNIX) as probe:
        return probe.connect_ex(str(socket)) == 0


class AdminClient:
    """Calls the operator's service of the node that `config` describes."""

    def __init__(self, config: NodeConfig) -> None:
        self._socket = config.paths.admin_socket
        self._name = f"{config.node.name}.{config.node.institution}"
        self._serve = f"{config.command} serve --config {shlex.quote(str(config.path))}"

    def status(self) -> pb.StatusResponse:
        return self._call(lambda node: node.Status, pb.StatusRequest())

    def reload(self) -> list[str]:
        return list(self._call(lambda node: node.Reload, pb.ReloadRequest()).changes)

    def reload_if_running(self) -> list[str] | None:
        """As `reload`, for a change that a stopped node reads at its start; None if no node answers."""
        try:
            return self.reload()
        except UnavailableError:
            return None

    def drain(self) -> int:
        return int(self._call(lambda node: node.Drain, pb.DrainRequest()).running_jobs)

    def workers(self) -> pb.WorkersResponse:
        return self._call(lambda node: node.Workers, pb.WorkersRequest())

    def _call(self, method: Callable[[rpc.AdminServiceStub], Callable[..., R]], request: Message) -> R:
        opened = grpc.secure_channel(
            f"unix:{self._socket}",
            grpc.local_channel_credentials(grpc.LocalConnectionType.UDS),
            options=(("grpc.enable_http_proxy", 0),),
        )
        try:
            with CheckedChannel(opened, f"node {self._name}", own=True) as channel:
                return method(rpc.AdminServiceStub(channel))(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            if status_of(error) is not grpc.StatusCode.UNAVAILABLE:
                failure = from_rpc_error(error, f"node {self._name}")
                if isinstance(failure, PeerUnreachable):
                    failure.hint = "it runs, but did not answer: repeat the command, then check its log"
                raise failure from error
            raise PeerUnreachable(
                f"no node answers on {self._socket}",
                hop=f"node {self._name}",
                hint=f"is it running, and are you its user? start it with: {self._serve}",
            ) from error
