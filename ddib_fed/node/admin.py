"""The operator's side of a node: a service on a Unix socket, metrics and probes on loopback, and what is watched.

What changed is in the audit log, and what is wrong in the node's state, within `certificates.CHECK_INTERVAL_S`. Probes
and metrics show only counts and states, and labels never hold content.
"""

import hashlib
import logging
import os
import shlex
import shutil
import socket as socketlib
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, MetricsHandler

from ddib_fed.errors import ConfigError, DdibError, PeerUnreachable
from ddib_fed.files import check_private_folder, is_disk_full
from ddib_fed.names import __version__
from ddib_fed.node.config import MAX_SOCKET_PATH, NodeConfig
from ddib_fed.node.connections import server_options
from ddib_fed.node.server import CallInterceptor
from ddib_fed.protocol.addresses import split_address
from ddib_fed.protocol.calls import CheckedChannel, from_rpc_error, status_of
from ddib_fed.security.audit import AuditLog, Value
from ddib_fed.security.peers import PeerStore, trust_changes
from ddib_fed.security.pki import fingerprint, load_identity, root_warning
from ddib_fed.v1 import admin_pb2 as pb
from ddib_fed.v1 import admin_pb2_grpc as rpc

log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 10.0
LONGEST_LINE: Final = 4_000
MOST_CALLERS: Final = 32
"""Silent connections to the socket hold few of the node's open files."""
# A connection to the probes holds a thread and an open file: beyond so many the oldest is ended, so that silent or slow
# ones cannot block a probe. prometheus_client's own server bounds neither number nor time.
MOST_CONNECTIONS: Final = 16
LONGEST_S: Final = 5.0
LEAST_FREE_BYTES: Final = 8 << 20
"""The node is degraded with less than half of the space that a start needs."""
PROBE_BYTES: Final = 1 << 16
_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """One registry per node, so that two nodes in one process do not share counters."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        counter, gauge = partial(Counter, registry=of), partial(Gauge, registry=of)
        self.requests = counter("ddib_requests", "Calls by method and status.", ["method", "status"])
        self.items = counter("ddib_items", "Items by stage and outcome.", ["stage", "outcome"])
        self.samples = counter("ddib_samples", "Samples by stage.", ["stage"])
        self.latent_bytes = counter("ddib_latent_bytes", "Bytes of latents by direction.", ["direction"])
        of_stage = "Seconds an item spends in a stage."
        self.seconds = Histogram("ddib_stage_seconds", of_stage, ["stage"], registry=of, buckets=_BUCKETS)
        self.streams = gauge("ddib_active_streams", "Streams that are open now.")
        self.jobs = gauge("ddib_jobs", "Jobs queued or running, and calls decoding, now.", ["state"])
        self.spool_bytes = gauge("ddib_spool_bytes", "Bytes of files of jobs.")
        self.disk_free = gauge("ddib_disk_free_bytes", "Free on the disk of the state folder.")
        Info("ddib_build", "The release that runs.", registry=of).info({"version": __version__})
        self.ready = gauge("ddib_ready", "1 when the model is loaded and warm.")
        ends = "Unix time of the expiry; 0 while it cannot be read."
        self.certificate_expires = gauge("ddib_certificate_expires_timestamp_seconds", ends)
        self.root_expires = gauge("ddib_root_expires_timestamp_seconds", ends)


class ProbeServer(ThreadingHTTPServer):
    """Plain HTTP for probes of the same machine, on a thread of its own."""

    daemon_threads = True
    request_queue_size = 4 * MOST_CONNECTIONS  # of 5, as usual, a crowd would delay a probe by seconds

    def __init__(self, listen: str, state: Callable[[], str], metrics: Metrics) -> None:
        address = split_address(listen, bound=True)
        self.address_family = socketlib.AF_INET6 if ":" in address[0] else socketlib.AF_INET
        self._open: deque[Any] = deque()
        try:
            super().__init__(address, _handler(state, metrics))
        except OSError as error:
            raise ConfigError(
                f"http.listen = {listen!r} cannot be bound: {error.strerror}", hint="choose another port"
            ) from error
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        if len(self._open) > MOST_CONNECTIONS:
            with suppress(OSError):  # it may have ended
                self._open.popleft().shutdown(socketlib.SHUT_RDWR)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            log.error("a probe could not be answered", exc_info=sys.exc_info())


def _handler(state: Callable[[], str], metrics: Metrics) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = metrics.registry
        timeout = LONGEST_S

        def do_GET(self) -> None:
            if self.path == "/metrics":
                super().do_GET()
                return
            code, line = 404, "/healthz, /readyz or /metrics"
            if self.path == "/healthz":
                code, line = 200, "ok"
            elif self.path == "/readyz":
                line = state()
                code = 200 if line == "serving" else 503
            body = f"{line}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def disk_problem(folders: Iterable[Path]) -> str | None:
    """Return why a file cannot be written to a folder, such as a full quota; None while all can be written."""
    for folder in folders:
        if not folder.is_dir():  # made when it is first needed
            continue
        free = 0
        try:
            free = shutil.disk_usage(folder).free
            if free >= LEAST_FREE_BYTES:
                with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
                    probe.write(bytes(PROBE_BYTES))
                continue
        except OSError as error:
            if not is_disk_full(error):
                return f"{folder} cannot be written: {error.strerror or error}"
        room = f"{free >> 10} KiB left, {LEAST_FREE_BYTES >> 20} MiB needed"
        return f"the disk of {folder} is full ({room}); df -h {shlex.quote(str(folder))}"
    return None


class Watch:
    """Writes to the audit log each change of whom a running node trusts, whoever made it, and finds what is wrong.

    The commands write what an operator did. A file that somebody put into the state folder by hand has no such line.
    """

    def __init__(
        self,
        audit: AuditLog,
        peers: PeerStore,
        pki_folder: Path,
        *,
        problem: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._audit, self._peers, self._pki_folder = audit, peers, pki_folder
        self._problem = problem
        self._snapshot = peers.snapshot()
        self._certificate = self._own_certificate()
        self._said: str | None = None
        self._started = False
        # Both the renewal thread and the operator's reload look: an older result must not overwrite a newer.
        self._lock = threading.Lock()

    def look(self) -> None:
        """Check once; a problem is logged when it begins and when it ends."""
        with self._lock:
            problem = self._problem()
            try:
                self._write_changes()
            except OSError as error:  # what changed is written at the next look
                problem = problem or f"the audit log cannot be written: {error}"
            problem = problem or self._audit.look()
            if problem and problem != self._said:
                log.error("degraded: %s", problem)
            elif self._said and not problem:
                log.info("no longer degraded: %s", self._said)
            self._said = problem

    def _write_changes(self) -> None:
        snapshot = self._peers.snapshot()
        changes = trust_changes(self._snapshot, snapshot)
        if changes:
            self._audit.write("trust_changed", changes=changes)
        for change in changes:
            log.info("%s", change)
        self._snapshot = snapshot
        certificate = self._own_certificate()
        if certificate is not None and certificate != self._certificate:
            self._audit.write("certificate_changed", certificate=certificate[0], until=certificate[1])
            self._certificate = certificate

    def _own_certificate(self) -> tuple[str, str] | None:
        """Return the fingerprint and the end of the own certificate; None while it cannot be read."""
        try:
            credentials = load_identity(self._pki_folder)
        except (DdibError, OSError):
            return None
        return fingerprint(credentials.certificate), credentials.not_after.isoformat()

    def started(self, **values: Value) -> None:
        """Write the line of a start, with whom the node trusts now; `trust` is a digest over all of it."""
        snapshot = self._snapshot
        self._audit.write(
            "node_started",
            **values,
            peers=sorted(snapshot.peers),
            suspended=sorted(snapshot.suspended),
            withdrawn=len(snapshot.withdrawn),
            certificate=self._certificate[0] if self._certificate else "",
            trust=hashlib.sha256("\n".join(sorted(snapshot.described())).encode()).hexdigest(),
        )
        self._started = True

    def stopped(self, **values: Value) -> None:
        """Write the line of a stop, if there was one of a start."""
        if self._started:
            try:
                self._audit.write("node_stopped", **values)
            except OSError:
                log.exception("the stop could not be written to the audit log")


class Operated(Protocol):
    def status(self) -> pb.StatusResponse: ...
    def reload(self) -> list[str]: ...
    def request_drain(self) -> int: ...


class _Servicer(rpc.AdminServiceServicer):
    def __init__(self, node: Operated) -> None:
        self._node = node

    def Status(self, request: pb.StatusRequest, context: grpc.ServicerContext) -> pb.StatusResponse:
        answer = self._node.status()
        answer.state, answer.workers.problem = _line(answer.state), _line(answer.workers.problem)
        for peer in answer.peers:
            peer.problem = _line(peer.problem)
        return answer

    def Reload(self, request: pb.ReloadRequest, context: grpc.ServicerContext) -> pb.ReloadResponse:
        return pb.ReloadResponse(changes=map(_line, self._node.reload()))

    def Drain(self, request: pb.DrainRequest, context: grpc.ServicerContext) -> pb.DrainResponse:
        return pb.DrainResponse(running_jobs=self._node.request_drain())


def _line(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 4] + " ..."


@contextmanager
def operator_service(config: NodeConfig, node: Operated) -> Iterator[None]:
    """Answer the operator on the node's socket, which only this user can open, while the block runs."""
    socket = config.paths.admin_socket
    check_alone(socket)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    server = grpc.server(
        ThreadPoolExecutor(2, thread_name_prefix="admin"),
        interceptors=[CallInterceptor(config.node.institution)],
        options=server_options(MOST_CALLERS),
    )
    rpc.add_AdminServiceServicer_to_server(_Servicer(node), server)
    before = os.umask(0o177)
    try:
        server.add_secure_port(f"unix:{socket}", grpc.local_server_credentials(grpc.LocalConnectionType.UDS))
    except RuntimeError as error:
        raise ConfigError(
            f"the operator's socket {socket} cannot be bound", hint="a shorter [node] state path, or TMPDIR"
        ) from error
    finally:
        os.umask(before)
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()
        socket.unlink(missing_ok=True)


def check_alone(socket: Path) -> None:
    """Raise unless the operator's service could be started on `socket`."""
    check_socket(socket)
    if answers(socket):
        raise ConfigError(
            f"another node is running on {socket.parent}",
            hint="ddib status, or give this node a state folder of its own",
        )


def check_socket(socket: Path) -> None:
    """Raise unless `socket` can be the operator's."""
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"the operator's socket {socket} has a path of more than {MAX_SOCKET_PATH} bytes",
            hint="a shorter [node] state path, or a shorter TMPDIR",
        )
    check_private_folder(socket.parent)
    if socket.exists() and not socket.is_socket():
        raise ConfigError(f"{socket} is no socket", hint=f"move {socket} away")


def answers(socket: Path) -> bool:
    """Return whether a process listens on the socket; a socket left behind by a kill does not answer."""
    with socketlib.socket(socketlib.AF_UNIX) as probe:
        return probe.connect_ex(str(socket)) == 0


# What a running node says of itself, as admin.proto has it; a time is None where there is none.


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The model that a node hosts, and where it runs."""

    domain: str
    kind: str
    sample_shape: tuple[int, ...]
    sha256: str
    parameters: int
    device: str


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A peer; why and when the last call to it failed, and since when and why it is suspended."""

    institution: str
    identity: str
    address: str
    fingerprint: str
    problem: str
    failed: datetime | None
    suspended: str


@dataclass(frozen=True, slots=True)
class CalibrationStatus:
    """A calibration of a node, and what its operator should know or do.

    Its state is "active", "replaced" (jobs take a newer one), "proposed", "expired", "refused" or "inactive".
    """

    sha256: str
    kind: str
    source: str
    target: str
    state: str
    expires: datetime
    warning: str
    dial: str


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """Who computes for the node, a line each."""

    executor: str
    wanted: int
    ready: tuple[str, ...]
    replaced: int
    problem: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The state of a running node: "loading", "serving", "draining" or "degraded: WHY", and what it holds."""

    institution: str
    name: str
    roles: tuple[str, ...]
    version: str
    state: str
    listen: str
    address: str
    model: ModelStatus | None
    peers: tuple[PeerStatus, ...]
    jobs: dict[str, int]
    uptime_s: float
    certificate_expires: datetime | None
    active_streams: int
    calibrations: tuple[CalibrationStatus, ...]
    root_expires: datetime | None
    workers: WorkersStatus

    @property
    def root_warning(self) -> str:
        """What to do about a root that ends soon; empty while there is time."""
        if self.root_expires is None:
            return ""
        return root_warning(self.institution, self.root_expires, datetime.now(UTC))


_TIMES: Final = frozenset({"failed", "expires", "certificate_expires", "root_expires"})


def _fields(message: Message) -> dict[str, Any]:
    """Return a message's fields: times in UTC, None for a time of 0, repeated fields as tuples."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name in _TIMES:
            value = datetime.fromtimestamp(int(value), UTC) if value else None
        values[field.name] = tuple(value) if field.is_repeated else value
    return values


def status_from(answer: pb.StatusResponse) -> NodeStatus:
    """Return a node's answer as a value."""
    parts = {
        "model": ModelStatus(**_fields(answer.model)) if answer.HasField("model") else None,
        "peers": tuple(PeerStatus(**_fields(row)) for row in answer.peers),
        "calibrations": tuple(CalibrationStatus(**_fields(row)) for row in answer.calibrations),
        "workers": WorkersStatus(**_fields(answer.workers)),
        "jobs": dict(answer.jobs),
    }
    return NodeStatus(**{**_fields(answer), **parts})


def ask(config: NodeConfig, method: str) -> Any:
    """Call a method of the operator's service of a running node."""
    name, request = f"node {config.node.name}.{config.node.institution}", getattr(pb, f"{method}Request")
    serve = f"{config.command} serve --config {shlex.quote(str(config.path))}"
    opened = grpc.secure_channel(
        f"unix:{config.paths.admin_socket}",
        grpc.local_channel_credentials(grpc.LocalConnectionType.UDS),
        options=(("grpc.enable_http_proxy", 0),),
    )
    try:
        with CheckedChannel(opened, name, own=True) as channel:
            return getattr(rpc.AdminServiceStub(channel), method)(request(), timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        if status_of(error) is grpc.StatusCode.UNAVAILABLE:
            raise PeerUnreachable(
                f"no node answers on {config.paths.admin_socket}",
                hop=name,
                hint=f"is it running, and are you its user? start it with: {serve}",
            ) from error
        failure = from_rpc_error(error, name)
        if isinstance(failure, PeerUnreachable):
            failure.hint = "it runs, but did not answer: repeat the command, then check its log"
        raise failure from error
