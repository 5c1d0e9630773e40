"""What the roles of a node share: its context, the interface of a role, and how the settings of a leg are read."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Protocol

import grpc

from ddib_fed.calibration.record import units_digest
from ddib_fed.calibration.signed import CalibrationStore
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.gate import Softener, load_key
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.errors import ConfigError, DdibError, Draining, NotReady, SettingsInvalid
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model import DecodingMemory, side_of, size_rule_of
from ddib_fed.node.policy import Quotas, offered_guidance, policy_digest
from ddib_fed.node.probes import Metrics
from ddib_fed.protocol.contract import REFUSE, ContractSide, GuidanceTerms
from ddib_fed.protocol.messages import Settings, settings_to_pb
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.peers import PeerStore
from ddib_fed.telemetry import OFF, Tracing
from ddib_fed.terminal import say
from ddib_fed.v1 import common_pb2


class PeerProblems:
    """The last failure of each peer since its last success; safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, str]] = {}

    def failed(self, institution: str, error: DdibError) -> None:
        self._last[institution] = self._clock(), f"{error.detail} [{error.reason}]"

    def answered(self, institution: str) -> None:
        self._last.pop(institution, None)

    def of(self, institution: str) -> tuple[float, str]:
        return self._last.get(institution, (0.0, ""))


@dataclass(slots=True)
class NodeContext:
    """State shared by the services of one node."""

    config: NodeConfig
    peers: PeerStore
    audit: AuditLog
    metrics: Metrics
    tracing: Tracing = OFF
    decoding: DecodingMemory = field(init=False)
    calibrations: CalibrationStore = field(init=False)
    peer_problems: PeerProblems = field(default_factory=PeerProblems)
    quotas: Quotas = field(init=False)
    _engine: ServingParty | None = None
    _softener: Softener | None = None
    _draining: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.decoding = DecodingMemory(self.config.limits.decode_memory_mib << 20)
        self.calibrations = CalibrationStore(self.config.paths.calibrations)
        self.quotas = Quotas(self.audit.store)

    @property
    def engine(self) -> ServingParty:
        """The warm engine."""
        if self._draining.is_set():
            raise Draining(retry_after_s=30)
        return self.running_engine

    @property
    def running_engine(self) -> ServingParty:
        """The warm engine, also for work that was accepted before draining began."""
        if self._engine is None:
            raise NotReady(retry_after_s=5)
        return self._engine

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    def set_engine(self, engine: ServingParty) -> None:
        """Serve a warm model."""
        bundle = engine.model.bundle
        if bundle.manifest.sample_kind == "picture":
            self._softener = Softener(load_key(self.config.paths.softening_key), bundle.digest)
        self._engine = engine

    @property
    def softener(self) -> Softener:
        """The source of softening noise of this node."""
        if self._softener is None:
            raise NotReady(retry_after_s=5)
        return self._softener

    def drain(self) -> None:
        self._draining.set()

    def side(self) -> ContractSide:
        """This node's half of a contract."""
        bundle = self.running_engine.model.bundle
        return side_of(bundle, self.config)

    def guidance(self) -> GuidanceTerms | None:
        return offered_guidance(self.running_engine.model, self.config.policy)

    @property
    def policy_sha256(self) -> str:
        return policy_digest(self.config)

    @property
    def units_sha256(self) -> str:
        return units_digest(self.running_engine.model.bundle.manifest.normalisation)

    @property
    def translates_in_tiles(self) -> bool:
        picture = self.running_engine.model.bundle.manifest.picture
        return picture is not None and picture.tiles and self.config.policy.size_rule != REFUSE

    @property
    def size_rule(self) -> str:
        manifest = self.running_engine.model.bundle.manifest
        return size_rule_of(manifest, allowed=self.config.policy.size_rule)


class RoleService(Protocol):
    """A running role of one node."""

    service_names: tuple[str, ...]

    def register(self, server: grpc.Server) -> None:
        """Add the servicers; called before the model is loaded."""

    def start(self) -> None:
        """The model is warm: start with the waiting work."""

    def jobs(self) -> Mapping[str, int]:
        """Work by state, for the operator."""

    def drain(self, timeout_s: float) -> None:
        """Return when running work is finished, or after the time."""

    def peers_changed(self) -> None:
        """End what belongs to removed peers."""

    def close(self) -> None:
        """Stop at once; unfinished work continues at the next start. Calls may still be answered."""

    def release(self) -> None:
        """Close files and databases; no call is answered any more."""


class Role(Protocol):
    """The `ROLE` of a package SOURCE_OR_TARGET_node.service."""

    name: str

    def check(self, config: NodeConfig) -> str:
        """What `open` would find, as a short text; changes nothing."""

    def open(self, node: NodeContext) -> RoleService:
        """The role in this node, not started yet."""


def find_roles(names: Iterable[str]) -> list[Role]:
    """The roles of these names; their packages stand above this one, which therefore imports none of them."""
    return [import_module(f"{name}_node.service").ROLE for name in names]


def train_node(config: NodeConfig, *, force: bool = False) -> None:
    """Train into the bundle that node.toml names, resuming an unfinished run of the same settings."""
    from ddib_fed.data.synthetic import DOMAINS
    from ddib_fed.training.config import SHIPPED
    from ddib_fed.training.run import train_at_terminal

    if not config.train.names_data and config.model.domain not in {*DOMAINS, *SHIPPED}:
        raise ConfigError(
            f"{config.path} does not say what to train on",
            hint='write images = "FOLDER" (pictures) or data = "points.npy" under [train]',
        )
    settings = config.train.config(
        config.folder,
        config.model.domain,
        name=config.model.bundle_domain or config.model.domain,
        threads=config.engine.threads or 1,
        command=f"{config.command} train --config node.toml",
    )
    bundle = train_at_terminal(settings, config.paths.bundle, resume=not force, force=force)
    if bundle is None:
        return
    say(
        f"model of {config.model.domain}: {bundle.manifest.parameters:,} parameters, digest {bundle.digest[:12]}, "
        f"in {config.paths.bundle}",
        f"next: {config.command} serve --config {shlex.quote(str(config.path))}",
        err=True,
    )


def solver_settings(like: Settings | common_pb2.SolverSettings) -> SolverSettings:
    """Settings for the engine; an empty name or a zero means the default."""
    default, names = SolverSettings(), [field.name for field in fields(Settings)]
    return SolverSettings(**{name: getattr(like, name) or getattr(default, name) for name in names})


def settings_message(settings: SolverSettings) -> common_pb2.SolverSettings:
    """Settings for the wire."""
    if settings.in_one_process:
        raise SettingsInvalid(
            "noise in decoding, and the public code's schedules and respacings, do not travel between nodes",
            hint="leave them out, or use `ddib translate --source` in one process",
        )
    return settings_to_pb(Settings(*(getattr(settings, field.name) for field in fields(Settings))))
