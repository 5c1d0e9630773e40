"""The operator's side of a node: a service on a Unix socket, metrics and probes on loopback, and what is watched.

What changed is in the audit log, and what is wrong in the node's state, within `certificates.CHECK_INTERVAL_S`. Probes
and metrics show only counts and states, and labels never hold content.
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import socket as socketlib
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, Final, Literal, Protocol, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, MetricsHandler
from pydantic_core import to_json

from ddib_fed.errors import ConfigError, DdibError, PeerUnreachable, error_class
from ddib_fed.files import check_private_folder, is_disk_full
from ddib_fed.names import __version__
from ddib_fed.node.config import MAX_SOCKET_PATH, NodeConfig
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security.audit import AuditLog, Value
from ddib_fed.security.peers import PeerStore, trust_changes
from ddib_fed.security.pki import fingerprint, load_identity, root_warning
from ddib_fed.terminal import explained

log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 10.0
# A connection holds a thread and an open file: beyond so many the oldest is ended, so that silent or slow
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


class LocalServer(ThreadingHTTPServer):
    """Plain HTTP for this machine alone, on a thread of its own: probes, metrics, and the `acts` by POST."""

    daemon_threads = True
    request_queue_size = 4 * MOST_CONNECTIONS  # of 5, as usual, a crowd would delay a probe by seconds
    server_bind = TCPServer.server_bind  # no look-up of the host's name

    def __init__(
        self,
        address: str | tuple[str, int],
        state: Callable[[], str],
        metrics: Metrics,
        acts: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        is_path = isinstance(address, str)
        self.address_family = (
            socketlib.AF_UNIX if is_path else socketlib.AF_INET6 if ":" in address[0] else socketlib.AF_INET
        )
        self._open: deque[Any] = deque()
        super().__init__(cast("tuple[str, int]", address), _handler(state, metrics, acts or {}))
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
            log.error("a request could not be answered", exc_info=sys.exc_info())


def probe_server(listen: str, state: Callable[[], str], metrics: Metrics) -> LocalServer:
    """Answer probes on a loopback address until the server is closed."""
    try:
        return LocalServer(split_address(listen, bound=True), state, metrics)
    except OSError as error:
        raise ConfigError(
            f"http.listen = {listen!r} cannot be bound: {error.strerror}", hint="choose another port"
        ) from error


def _handler(
    state: Callable[[], str], metrics: Metrics, acts: Mapping[str, Callable[[], object]]
) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = metrics.registry
        timeout = LONGEST_S

        def do_GET(self) -> None:
            if self.path == "/metrics":
                super().do_GET()
            elif self.path == "/healthz":
                self._answer(200, "ok\n")
            elif self.path == "/readyz":
                line = state()
                self._answer(200 if line == "serving" else 503, f"{line}\n")
            else:
                self._answer(404, "/healthz, /readyz or /metrics\n")

        def do_POST(self) -> None:
            act = acts.get(self.path.removeprefix("/"))
            try:
                code, value = (404, None) if act is None else (200, act())
            except Exception as error:
                failure = explained(error)
                code, value = 500, (failure.reason, failure.detail, failure.hint)
                log.exception("the operator's %s failed", self.path)
            self._answer(code, to_json(value).decode())

        def _answer(self, code: int, text: str) -> None:
            body = text.encode()
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
    def state(self) -> str: ...
    def status(self) -> "NodeStatus": ...
    def reload(self) -> list[str]: ...
    def request_drain(self) -> int: ...


@contextmanager
def operator_service(config: NodeConfig, node: Operated, metrics: Metrics) -> Iterator[None]:
    """Answer the operator on the node's socket, which only this user can open, while the block runs."""
    socket = config.paths.admin_socket
    check_alone(socket)
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    socket.unlink(missing_ok=True)
    acts = {"status": node.status, "reload": node.reload, "drain": node.request_drain}
    before = os.umask(0o177)
    try:
        server = LocalServer(str(socket), node.state, metrics, acts)
    except OSError as error:
        raise ConfigError(
            f"the operator's socket {socket} cannot be bound", hint="a shorter [node] state path, or TMPDIR"
        ) from error
    finally:
        os.umask(before)
    try:
        yield
    finally:
        server.close()
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


# What a running node says of itself; a time is None where there is none.


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


def ask(config: NodeConfig, act: Literal["status", "reload", "drain"]) -> Any:
    """Have a running node do one of its operator's acts; return its answer."""
    hop, socket = f"node {config.node.name}.{config.node.institution}", config.paths.admin_socket
    with closing(HTTPConnection("localhost")) as connection, socketlib.socket(socketlib.AF_UNIX) as opened:
        opened.settimeout(CALL_TIMEOUT_S)
        try:
            opened.connect(str(socket))
        except OSError as error:
            serve = f"{config.command} serve --config {shlex.quote(str(config.path))}"
            raise PeerUnreachable(
                f"no node answers on {socket}",
                hop=hop,
                hint=f"is it running, and are you its user? start it with: {serve}",
            ) from error
        connection.sock = opened
        try:
            connection.request("POST", f"/{act}")
            response = connection.getresponse()
            value = json.loads(response.read())
        except (OSError, HTTPException, ValueError) as error:
            raise PeerUnreachable(
                f"{hop} did not answer in time",
                hop=hop,
                hint="it runs, but did not answer: repeat the command, then check its log",
            ) from error
    if response.status != HTTPStatus.OK:
        reason, detail, hint = value
        raise error_class(reason)(detail, hop=hop, hint=hint)
    return value
