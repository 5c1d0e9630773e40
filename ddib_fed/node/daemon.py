"""Runs a node: check, bind, load, warm up, serve, watch, drain, exit.

The start order suits the operator: bad configuration and keys fail at once, the port is bound before the model
is loaded (so a second node on the port is noticed early), and Health says SERVING only once the model is warm.
"""

import errno
import logging
import queue
import shlex
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Final

from ddib_fed.calibration.record import CalibrationStore
from ddib_fed.engine.gate import check_key
from ddib_fed.errors import ConfigError, DdibError, ExhaustedError
from ddib_fed.files import check_private_folder
from ddib_fed.names import __version__
from ddib_fed.networks.placement import share_heaps
from ddib_fed.node.admin import (
    Metrics,
    ModelStatus,
    NodeStatus,
    PeerStatus,
    Watch,
    WorkersStatus,
    answers,
    check_alone,
    check_socket,
    disk_problem,
    operator_service,
    probe_server,
)
from ddib_fed.node.calibrations import overview
from ddib_fed.node.certificates import IdentityServicer, RenewalThread, certificate_status, recover_at_start
from ddib_fed.node.config import NodeConfig, peer_store
from ddib_fed.node.connections import (
    FEW_FILES,
    WANTED_FILES,
    InboundGuard,
    file_limit,
    most_connections,
    raise_file_limit,
)
from ddib_fed.node.policy import Policy
from ddib_fed.node.role import NodeContext, RoleService, find_roles, open_engine
from ddib_fed.node.server import CallInterceptor, NodeServer
from ddib_fed.protocol.addresses import check_bindable, is_every_address, split_address
from ddib_fed.security import tls
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.pki import TlsCredentials, has_authority, load_identity, root_warning
from ddib_fed.store import NodeStore, rehearse
from ddib_fed.telemetry import open_tracing
from ddib_fed.terminal import as_config_error, explained
from ddib_fed.v1 import identity_pb2_grpc

log = logging.getLogger(__name__)

MIN_FREE_BYTES: Final = 16 << 20
"""A start itself writes databases, an audit line and a socket."""
LOOK_S: Final = 1.0
_HELD: Final = ", in use while this node runs"


# The steps of a start: `check` runs all of them, `serve` stops at the first that fails. A step changes nothing, and
# yields its finding, then its warnings; a start uses the same code afterwards.


@dataclass(frozen=True, slots=True)
class StepResult:
    step: str
    text: str = ""
    warnings: tuple[str, ...] = ()
    problem: DdibError | None = None


def check(config: NodeConfig) -> list[StepResult]:
    """Run every step of a start, also after failures; ports and files held by this node itself are no failures."""
    findings = []
    for name in STEPS:
        try:
            findings.append(_take(name, config))
        except Exception as error:  # noqa: BLE001 - a step that breaks must not hide what the others find
            findings.append(StepResult(name, problem=explained(error)))
    return findings


def begin(config: NodeConfig) -> tuple[str, ...]:
    """Run the checks that precede a start; return the warnings, for the log."""
    check_alone(config.paths.admin_socket)
    results = [_take(name, config) for name in STEPS if name not in _FOR_REAL]
    return tuple(warning for result in results for warning in result.warnings)


def _take(name: str, config: NodeConfig) -> StepResult:
    try:
        text, *warnings = STEPS[name](config)
    except OSError as error:
        raise as_config_error(error, name) from error
    return StepResult(name, text, tuple(warnings))


def _state(config: NodeConfig) -> Iterator[str]:
    paths = config.paths
    for folder in (paths.state, paths.pki):
        check_private_folder(folder)
    existing = next(place for place in (paths.state, *paths.state.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise ExhaustedError(
            f"the disk of {paths.state} has {free >> 10} KiB left; a start needs {MIN_FREE_BYTES >> 20} MiB",
            hint=f"df -h {shlex.quote(str(existing))}",
        )
    yield str(paths.state)
    for place in (config.folder, config.path):
        if place.exists() and place.stat().st_mode & 0o002:
            yield f"everybody may write {place}: chmod o-w {shlex.quote(str(place))}"


def _peers(config: NodeConfig) -> Iterator[str]:
    admitted, proxy = peer_store(config).list(), config.proxy
    peers = ", ".join(f"{peer.institution} at {peer.address}" for peer in admitted)
    through = f", through the proxy {proxy.address}" if proxy is not None else ""
    yield (peers or "none admitted yet: ddib peer add") + through
    for peer in admitted:
        until = max(root.not_valid_after_utc for root in peer.roots)
        if warning := root_warning(peer.institution, until, datetime.now(UTC)):
            yield warning


def _calibrations(config: NodeConfig) -> Iterator[str]:
    store = CalibrationStore(config.paths.calibrations)
    rows = overview(config, store, peer_store(config))
    states = Counter(row.state for row in rows)
    yield ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    for row in rows:
        if row.warning:
            yield f"{row.sha256[:12]} ({row.source} to {row.target}): {row.warning}"
    for problem in store.problems():
        yield f"not read: {problem}"


def _store(config: NodeConfig) -> Iterator[str]:
    if answers(config.paths.admin_socket):
        yield f"{config.paths.store}{_HELD}"
    else:
        jobs, lines = rehearse(config.paths.store)
        yield f"{config.paths.store}: {jobs} jobs, {lines} lines of the audit log"


def _listen(config: NodeConfig) -> Iterator[str]:
    yield _bindable(config, config.node.listen, "node.listen")
    if config.not_dialled:
        yield config.not_dialled


def _bindable(config: NodeConfig, listen: str, setting: str) -> str:
    """Return the address, with a note if this node itself holds it; raise ConfigError if it cannot be bound."""
    try:
        check_bindable(listen, setting)
    except ConfigError as error:
        busy = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        if not (busy and answers(config.paths.admin_socket)):
            raise
        return f"{listen}{_HELD}"
    return listen


def _operator(config: NodeConfig) -> Iterator[str]:
    socket = config.paths.admin_socket
    check_socket(socket)
    yield f"{socket}{_HELD if answers(socket) else ''}"


def _http(config: NodeConfig) -> Iterator[str]:
    if config.http.listen is None:
        yield "off"
        return
    yield _bindable(config, config.http.listen, "http.listen")
    port = split_address(config.http.listen, bound=True)[1]
    if port and port == split_address(config.node.listen, bound=True)[1]:
        hint = "choose another port for http.listen"
        raise ConfigError(f"http.listen and node.listen are both port {port}", hint=hint)


def _telemetry(config: NodeConfig) -> Iterator[str]:
    if config.telemetry.endpoint is None:
        yield "off"
        return
    open_tracing(config.telemetry, institution=config.node.institution, what="check").close()
    shared = ", ".join(config.telemetry.peers)
    yield f"to {config.telemetry.endpoint}" + (f", traces shared with {shared}" if shared else "")


def _files(config: NodeConfig) -> Iterator[str]:  # noqa: ARG001 - a step's signature
    limit = raise_file_limit()  # of this process, as a start does
    text = f"{limit} may be open, {most_connections(limit)} of them connections"
    yield text
    if limit <= FEW_FILES:
        yield f"only {text}: raise the hard limit, e.g. LimitNOFILE={WANTED_FILES} in the systemd unit"


def _roles(config: NodeConfig) -> Iterator[str]:
    if answers(config.paths.admin_socket):
        yield f"{', '.join(config.node.roles)}{_HELD}"
    else:
        names = config.node.roles
        yield ", ".join(
            f"{name} ({role.check(config)})" for name, role in zip(names, find_roles(names), strict=True)
        )


def _model(config: NodeConfig) -> Iterator[str]:
    engine = open_engine(config, trial=True)
    engine.close()
    model, manifest = engine.model, engine.model.manifest
    if manifest.sample_kind != "point":
        check_key(config.paths.softening_key)
    shape = "x".join(map(str, manifest.sample_shape))
    guided = "" if model.classifier is None else f", guided by {model.classifier.digest[:12]}"
    what = f"{manifest.sample_kind} {shape}, {model.bundle.digest[:12]}, {model.device}{guided}"
    yield f"{config.model.domain}: {what}"


STEPS: Final[dict[str, Callable[[NodeConfig], Iterable[str]]]] = {
    "state": _state,
    "identity": certificate_status,
    "peers": _peers,
    "calibrations": _calibrations,
    "store": _store,
    "listen": _listen,
    "operator": _operator,
    "http": _http,
    "telemetry": _telemetry,
    "files": _files,
    "roles": _roles,
    "model": _model,
}
_FOR_REAL: Final = frozenset({"store", "roles", "model"})


class _StopNow(BaseException):
    """The second signal, in the middle of loading."""


class Daemon:
    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._started = time.monotonic()
        # No Event in these two: a signal handler may interrupt its own thread anywhere, also inside an Event's lock.
        self._signals: list[int] = []
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._loading = False
        self._drain_asked = threading.Event()
        self._last_jobs: Counter[str] = Counter()
        self._released = False
        paths = config.paths
        for warning in begin(config):
            log.warning("%s", warning)
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if report := recover_at_start(config):
            log.info("%s", report)
        with ExitStack() as undo:  # of a start that fails
            self.peers = peer_store(config)
            self._credentials = tls.ServerCredentials(paths.pki, self.peers)
            tracing = open_tracing(
                config.telemetry,
                institution=config.node.institution,
                what="+".join(config.node.roles),
                peers=config.telemetry.peers,
            )
            undo.callback(tracing.close)
            store = NodeStore(paths.store)
            undo.callback(store.close)
            self.node = NodeContext(config, self.peers, AuditLog(store), Metrics(), tracing)
            self.roles: list[RoleService] = []
            for role in find_roles(config.node.roles):
                opened = role(self.node)
                undo.callback(opened.release)
                undo.callback(opened.close)
                self.roles.append(opened)
            self._watch = Watch(self.node.audit, self.peers, paths.pki, problem=self._problem)
            self._renewal = RenewalThread(config, on_tick=self._look)
            self._guard = InboundGuard(most_connections(file_limit()))
            self._open_port()
            undo.pop_all()

    def _open_port(self) -> None:
        config, limits = self.config, self.config.limits
        institution, issuer = config.node.institution, has_authority(config.paths.pki)
        requests = self.node.metrics.requests
        self._calls = CallInterceptor(
            institution,
            self.peers,
            Policy(institution=institution, roles=config.node.roles, issuer=issuer, section=config.policy),
            audit=self.node.audit,
            guard=self._guard,
            on_outcome=lambda method, status: requests.labels(method.rpartition("/")[2], status).inc(),
            limits=limits,
        )
        self.server = NodeServer(
            config.node.listen,
            self._credentials.grpc,
            [self._calls],
            max_streams=limits.max_streams,
            on_call=self._guard.called,
            on_crowd=self._guard.end,
        )
        for role in self.roles:
            role.register(self.server.grpc)
            self.server.add_services(role.service_names)
        if issuer:
            identity_pb2_grpc.add_IdentityServiceServicer_to_server(
                IdentityServicer(self.node), self.server.grpc
            )

    def run(self) -> int:
        """Serve until a signal or a drain; return 0 after an orderly end."""
        metrics = self.node.metrics
        metrics.streams.set_function(lambda: float(self._calls.streams.active))
        for state in ("queued", "running", "decoding"):
            metrics.jobs.labels(state).set_function(partial(lambda state: float(self._jobs()[state]), state))
        metrics.disk_free.set_function(self._disk_free)
        metrics.ready.set_function(lambda: float(self.state() == "serving"))
        for gauge, end in (
            (metrics.certificate_expires, "not_after"),
            (metrics.root_expires, "root_not_after"),
        ):
            gauge.set_function(partial(self._expires, end))
        config = self.config
        with ExitStack() as after:  # probes and the operator are answered to the end
            try:
                after.enter_context(operator_service(config, self, metrics))
                if config.http.listen:
                    after.callback(probe_server(config.http.listen, self.state, metrics).close)
                with suppress(_StopNow):
                    self._serve()
            finally:
                self._close()
        return 0

    def _serve(self) -> None:
        self.server.start()
        host = split_address(self.config.node.listen, bound=True)[0]
        tls.probe_tls12("127.0.0.1" if is_every_address(host) else host, self.server.port)
        self._guard.start(self.server.port)
        self._calls.start()
        self._load()
        while not self.stopping:
            with suppress(queue.Empty):
                # A signal that comes while this call begins is noted, but does not wake it: Python runs the handler
                # only when the call is over.
                self._woken.get(timeout=LOOK_S)
        self._drain()

    def _load(self) -> None:
        started = time.perf_counter()
        self._loading = True
        try:
            engine = open_engine(self.config)
        finally:
            self._loading = False
        if self.stopping:
            engine.close()
            return
        self.node.set_engine(engine)
        self._watch.started(
            version=__version__,
            roles=self.config.node.roles,
            listen=self.server.address,
            domain=self.config.model.domain,
            model=engine.model.bundle.digest,
            policy=self.node.policy_sha256,
        )
        self._renewal.start()
        for role in self.roles:
            role.start()
        self.server.set_serving(serving=True)
        log.info(
            "serving %s as %s on %s (model %s, %d parameters, %s, %d thread(s), ready after %.1f s)",
            self.config.model.domain,
            "+".join(self.config.node.roles),
            self.server.address,
            engine.model.bundle.digest[:12],
            engine.model.bundle.manifest.parameters,
            engine.place,
            engine.threads,
            time.perf_counter() - started,
        )

    @property
    def stopping(self) -> bool:
        return bool(self._signals) or self._drain_asked.is_set()

    @property
    def _stop_now(self) -> bool:
        return len(self._signals) > 1

    def on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        """First signal: drain. Second: stop at once, also in the middle of loading."""
        self._signals.append(number)
        self._woken.put(None)
        if self._stop_now and self._loading:
            self._loading = False
            raise _StopNow

    def request_drain(self) -> int:
        """Drain and exit, as SIGTERM does; return the number of jobs that run now."""
        self._drain_asked.set()
        self._woken.put(None)
        return self._jobs()["running"]

    def _drain(self) -> None:
        """Health first, so that no new work arrives; then the running work; then the open calls."""
        log.info("draining: no new work; running work has %.0f s", self.config.limits.drain_s)
        self.server.set_serving(serving=False)
        self.node.draining = True
        deadline = time.monotonic() + self.config.limits.drain_s

        def drain() -> None:
            for role in self.roles:
                role.drain(max(0.0, deadline - time.monotonic()))

        waiter = threading.Thread(target=drain, daemon=True)
        waiter.start()
        while waiter.is_alive() and not self._stop_now and time.monotonic() < deadline:
            waiter.join(0.05)

    def _close(self) -> None:
        """Work and watchers end first; the roles release resources only when no call runs."""
        for role in self.roles:
            role.close()
        self.server.stop(0.0 if self._stop_now else 1.0)
        self._guard.stop()
        self._calls.stop()
        self._renewal.stop()
        self._last_jobs = self._jobs()
        self._released = True
        for role in self.roles:
            role.release()
        self.node.quotas.close()
        if self.node.loaded:
            self.node.running_engine.close()
        self.node.tracing.close()
        self._calls.refusals.flush(everything=True)
        by = "signal" if self._signals else "drain" if self._drain_asked.is_set() else "failure"
        self._watch.stopped(by=by, at_once=self._stop_now)
        self.node.audit.store.close()
        log.info("stopped")

    def _jobs(self) -> Counter[str]:
        """Count the work of all roles by state; return the last counts once their stores are closed."""
        if not self._released:
            try:
                self._last_jobs = sum((Counter(role.jobs()) for role in self.roles), Counter())
            except Exception:  # the store failed: the operator is answered, and a stop goes on
                log.exception("the jobs could not be counted")
        return self._last_jobs

    def _disk_free(self) -> float:
        """Return the bytes that are free; 0 while the disk cannot be read, as an exception would end /metrics."""
        with suppress(OSError):
            return float(shutil.disk_usage(self.config.paths.state).free)
        return 0.0

    def _expires(self, end: str) -> float:
        own = self._own()
        return 0.0 if own is None else float(getattr(own, end).timestamp())

    def _own(self) -> TlsCredentials | None:
        """Return the node's certificate; None while it cannot be read."""
        with suppress(DdibError, OSError):
            return load_identity(self.config.paths.pki)
        return None

    def _look(self) -> int:
        """End the calls of peers that are no longer admitted, and run the watch; return the number of calls ended."""
        for role in self.roles:
            role.peers_changed()
        ended = self._calls.sweep()
        self._calls.refusals.flush()
        self._watch.look()
        return ended

    def state(self) -> str:
        """Return loading, serving, draining, or degraded with the reason."""
        if self.node.draining:
            return "draining"
        if not self.server.serving:  # the operator and /readyz see what Health says
            return "draining" if self.stopping else "loading"
        problem = (
            self._problem()
            or self.node.audit.problem
            or self._renewal.problem
            or self.node.running_engine.executor.problem
        )
        return f"degraded: {problem}" if problem else "serving"

    def _problem(self) -> str | None:
        paths = self.config.paths
        return disk_problem((paths.state, paths.spool)) or self._credentials.problem

    def reload(self) -> list[str]:
        """Read peers, withdrawals and certificates again."""
        changes = [*self.peers.reload()]
        if ended := self._look():
            changes.append(f"ended {ended} calls of peers that are no longer admitted")
        self.node.audit.write("reload", changes=changes, policy=self.node.policy_sha256)
        return [*changes, f"peers: {', '.join(sorted(p.institution for p in self.peers.list())) or 'none'}"]

    def status(self) -> NodeStatus:
        section, own, suspended = self.config.node, self._own(), self.peers.snapshot().suspended
        model, pool, problems = None, None, self.node.peer_problems
        if self.node.loaded:
            engine = self.node.running_engine
            bundle, pool = engine.model.bundle, engine.pool
            model = ModelStatus(
                domain=self.config.model.domain,
                kind=bundle.manifest.sample_kind,
                sample_shape=bundle.manifest.sample_shape,
                sha256=bundle.digest,
                parameters=bundle.manifest.parameters,
                device=engine.place,
            )
        counters = {"wanted": 0, "replaced": 0} if pool is None else pool.counters
        return NodeStatus(
            institution=section.institution,
            name=section.name,
            roles=section.roles,
            version=__version__,
            state=self.state(),
            listen=self.server.address,
            address=section.address,
            model=model,
            peers=tuple(
                PeerStatus(
                    institution=peer.institution,
                    identity=str(peer.identity),
                    address=peer.address,
                    fingerprint=" ".join(peer.fingerprints),
                    problem=problems.of(peer.institution)[1],
                    failed=problems.of(peer.institution)[0],
                    suspended=suspended.get(peer.institution, ""),
                )
                for peer in self.peers.list()
            ),
            jobs=self._jobs(),
            uptime_s=time.monotonic() - self._started,
            certificate_expires=None if own is None else own.not_after,
            active_streams=self._calls.streams.active,
            calibrations=tuple(overview(self.config, self.node.calibrations, self.peers)),
            root_expires=None if own is None else own.root_not_after,
            workers=WorkersStatus(
                executor=self.config.engine.executor,
                wanted=counters["wanted"],
                ready=() if pool is None else tuple(pool.workers()),
                replaced=counters["replaced"],
                problem=(pool and pool.problem) or "",
            ),
        )


def serve(config: NodeConfig) -> int:
    """Run a node in this process until SIGTERM or SIGINT; return the exit code."""
    raise_file_limit()
    share_heaps()
    daemon = Daemon(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.on_signal)
    return daemon.run()
