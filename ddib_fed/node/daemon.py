"""Runs a node: bind, load, warm up, serve, drain, exit.

The start order suits the operator: bad configuration and keys fail at once, the port is bound before the model
is loaded (so a second node on the port is noticed early), and Health says SERVING only once the model is warm.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from datetime import datetime
from types import FrameType

from ddib_fed.engine.local_party import ServingParty
from ddib_fed.errors import DdibError
from ddib_fed.networks.placement import share_heaps
from ddib_fed.node import startup
from ddib_fed.node.admin import AdminServicer, serve_admin, stop_admin
from ddib_fed.node.admitting import peer_store
from ddib_fed.node.calibrations import overview
from ddib_fed.node.certificates import IdentityServicer, RenewalThread, recover_at_start
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.connections import InboundGuard, file_limit, most_connections, raise_file_limit
from ddib_fed.node.interceptors import CallInterceptor
from ddib_fed.node.model import open_engine
from ddib_fed.node.policy import Policy
from ddib_fed.node.probes import Metrics, ProbeServer
from ddib_fed.node.role import NodeContext, RoleService, find_roles
from ddib_fed.node.server import NodeServer, probe_own_port
from ddib_fed.node.watch import DiskWatch, Watch
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security import tls
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.pki import has_authority, load_identity
from ddib_fed.store import NodeStore
from ddib_fed.telemetry import open_tracing
from ddib_fed.v1 import admin_pb2 as pb
from ddib_fed.v1 import identity_pb2_grpc
from ddib_fed.version import __version__

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the thread that serves looks whether the node is to end, if nothing wakes it."""


class _StopNow(BaseException):
    """The second signal, in the middle of loading."""


class Daemon:
    """One node from start to exit."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._started = time.monotonic()
        # No Event in these two: a signal handler may interrupt its own thread anywhere, also inside an Event's lock.
        self._signals: list[int] = []
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._loading = False
        self._engine: ServingParty | None = None
        self._drain_asked = threading.Event()
        paths = config.paths
        for warning in startup.begin(config):
            log.warning("%s", warning)
        paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if report := recover_at_start(config):
            log.info("%s", report)
        self.peers = peer_store(config)
        metrics = Metrics()
        tracing = open_tracing(
            config.telemetry,
            institution=config.node.institution,
            what="+".join(config.node.roles),
            peers=config.telemetry.peers,
        )
        self.node = NodeContext(config, self.peers, AuditLog(NodeStore(paths.store)), metrics, tracing)
        self.roles: list[RoleService] = [role.open(self.node) for role in find_roles(config.node.roles)]
        self._last_jobs: Counter[str] = Counter()
        self._released = False
        self._disk = DiskWatch((paths.state, paths.spool))
        try:
            self.server = self._server()
        except BaseException:
            for role in self.roles:
                role.close()
                role.release()
            self.node.audit.store.close()
            raise
        self._renewal = RenewalThread(config, on_tick=self._watch.look)

    def _server(self) -> NodeServer:
        config = self.config
        self._guard = InboundGuard(most_connections(file_limit()))
        self._credentials = tls.ServerCredentials(config.paths.pki, self.peers)
        institution = config.node.institution
        issuer = has_authority(config.paths.pki)
        policy = Policy(
            institution=institution, roles=config.node.roles, issuer=issuer, section=config.policy
        )
        self._calls = CallInterceptor(
            institution,
            self.peers,
            policy,
            on_outcome=self._count,
            audit=self.node.audit,
            on_called=self._guard.called,
            on_admitted=self._guard.admitted,
            request_s=config.limits.request_s,
            idle_s=config.limits.idle_s,
            max_streams=config.limits.max_streams,
        )
        self._watch = Watch(
            self.node, self._credentials, self._disk, self._calls.refusals, self._peers_changed
        )
        server = NodeServer(
            config.node.listen,
            self._credentials.grpc,
            [self._calls],
            max_streams=config.limits.max_streams,
            on_crowd=self._guard.end,
        )
        for role in self.roles:
            role.register(server.grpc)
            server.add_services(role.service_names)
        if issuer:
            identity_pb2_grpc.add_IdentityServiceServicer_to_server(
                IdentityServicer(config, self.node.audit, self.node.quotas, self.peers), server.grpc
            )
        return server

    def _count(self, method: str, status: str) -> None:
        self.node.metrics.requests.labels(method.rpartition("/")[2], status).inc()

    def run(self) -> int:
        """Serve until told to stop; 0 after an orderly end."""
        metrics = self.node.metrics
        metrics.streams.set_function(lambda: float(self._calls.streams.active))
        metrics.ready.set_function(lambda: float(self.state() == "serving"))
        metrics.certificate_expires.set_function(lambda: self._expires("not_after"))
        metrics.root_expires.set_function(lambda: self._expires("root_not_after"))
        config = self.config
        with ExitStack() as after:  # probes and the operator are answered to the end
            try:
                servicer = AdminServicer(self)
                admin = serve_admin(
                    config.paths.admin_socket, servicer, [CallInterceptor(config.node.institution)]
                )
                after.callback(stop_admin, admin, config.paths.admin_socket)
                if config.http.listen:
                    after.callback(ProbeServer(config.http.listen, self.state, metrics).close)
                with suppress(_StopNow):
                    self._serve()
            finally:
                self._close()
        return 0

    def _serve(self) -> None:
        self.server.start()
        probe_own_port(self.server.port, split_address(self.config.node.listen, bound=True)[0])
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
        self._engine = engine
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
        """Drain and exit, as SIGTERM does; returns how many jobs run now."""
        running = self._jobs()["running"]
        self._drain_asked.set()
        self._woken.put(None)
        return running

    def _drain(self) -> None:
        """Health first, so that no new work arrives; then the running work; then the open calls."""
        log.info("draining: no new work; running work has %.0f s", self.config.limits.drain_s)
        self.server.set_serving(serving=False)
        self.node.drain()
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
        self._jobs()
        self._released = True
        for role in self.roles:
            role.release()
        self.node.quotas.close()
        if self._engine is not None:
            self._engine.close()
        self.node.tracing.close()
        by = "signal" if self._signals else "drain" if self._drain_asked.is_set() else "failure"
        self._watch.stopped(by=by, at_once=self._stop_now)
        self.node.audit.store.close()
        log.info("stopped")

    def _jobs(self) -> Counter[str]:
        """Work of all roles by state; what it was last, once their stores are closed."""
        if not self._released:
            found: Counter[str] = Counter()
            try:
                for role in self.roles:
                    found.update(role.jobs())
                self._last_jobs = found
            except Exception:  # also a store that is released meanwhile: the operator is answered to the end
                log.exception("the jobs could not be counted")
        return self._last_jobs

    def _expires(self, which: str) -> float:
        """When the own certificate (`not_after`) or its root (`root_not_after`) ends; 0 while it cannot be read."""
        try:
            found: datetime = getattr(load_identity(self.config.paths.pki), which)
        except (DdibError, OSError):
            return 0.0
        return found.timestamp()

    def _peers_changed(self) -> int:
        for role in self.roles:
            role.peers_changed()
        return self._calls.sweep()

    def state(self) -> str:
        """loading, serving, draining, or degraded with the reason."""
        if self.node.draining:
            return "draining"
        if not self.server.serving:  # the operator and /readyz see what Health says
            return "draining" if self.stopping else "loading"
        problem = (
            self._disk.problem
            or self._credentials.problem
            or self.node.audit.problem
            or self._renewal.problem
            or self.node.running_engine.problem
        )
        return f"degraded: {problem}" if problem else "serving"

    def reload(self) -> list[str]:
        """Read peers, withdrawals and certificates again."""
        changes = [*self.peers.reload()]
        ended = self._peers_changed()
        if ended:
            changes.append(f"ended {ended} calls of peers that are no longer admitted")
        self._watch.look()
        self.node.audit.write("reload", changes=changes, policy=self.node.policy_sha256)
        return [*changes, f"peers: {', '.join(sorted(p.institution for p in self.peers.list())) or 'none'}"]

    def workers(self) -> pb.WorkersResponse:
        engine = self.node.running_engine
        if engine.pool is None:
            return pb.WorkersResponse(executor="inline")
        counters = engine.pool.counters
        return pb.WorkersResponse(
            executor=self.config.engine.executor,
            wanted=counters["wanted"],
            ready=engine.pool.workers(),
            replaced=counters["replaced"],
            problem=engine.problem or "",
        )

    def status(self) -> pb.StatusResponse:
        """What `ddib status` shows."""
        section = self.config.node
        answer = pb.StatusResponse(
            institution=section.institution,
            name=section.name,
            roles=section.roles,
            version=__version__,
            state=self.state(),
            listen=self.server.address,
            address=section.address,
            uptime_s=time.monotonic() - self._started,
            certificate_expires=self._expires("not_after"),
            root_expires=self._expires("root_not_after"),
            active_streams=self._calls.streams.active,
        )
        if self.node.loaded:
            bundle = self.node.running_engine.model.bundle
            answer.model.domain = self.config.model.domain
            answer.model.kind = bundle.manifest.sample_kind
            answer.model.sample_shape.extend(bundle.manifest.sample_shape)
            answer.model.sha256 = bundle.digest
            answer.model.parameters = bundle.manifest.parameters
            answer.model.device = self.node.running_engine.place
        suspended = self.peers.snapshot().suspended
        for peer in self.peers.list():
            failed, problem = self.node.peer_problems.of(peer.institution)
            answer.peers.add(
                institution=peer.institution,
                identity=str(peer.identity),
                address=peer.address,
                fingerprint=" ".join(peer.fingerprints),
                problem=problem,
                failed=failed,
                suspended=suspended.get(peer.institution, ""),
            )
        answer.jobs.update(self._jobs())
        answer.calibrations.extend(overview(self.config, self.node.calibrations, self.peers))
        return answer


def serve(config: NodeConfig) -> int:
    """Run a node in this process until SIGTERM or SIGINT; the exit code."""
    raise_file_limit()
    share_heaps()
    daemon = Daemon(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.on_signal)
    return daemon.run()
