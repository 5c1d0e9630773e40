"""The interface between a node and its roles.

A role is an entry point of the group `ddib_fed.roles`; the node knows no role by name.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import grpc

from ddib_fed.bridge.calibration.record import units_digest
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.bridge.softening import Softener
from ddib_fed.errors import ConfigError, Draining, ModelNotFound, NotReady
from ddib_fed.metrics.attacks.training_index import TrainingIndex
from ddib_fed.node.applied import Applied
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model.decoding_memory import DecodingMemory
from ddib_fed.node.model.loaded import LoadedModel, load_model
from ddib_fed.node.model.pictures import class_names_of, size_rule_of, terms_of, value_range_of
from ddib_fed.node.model.training_index import find_index, open_index
from ddib_fed.node.peer_problems import PeerProblems
from ddib_fed.node.policy import offered_guidance, policy_digest
from ddib_fed.node.quota import Ledger
from ddib_fed.server.metrics import Metrics
from ddib_fed.telemetry.tracing import OFF, Tracing
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.calibrations.store import CalibrationStore
from ddib_fed.trust.peers.store import PeerStore
from ddib_fed.wire.contracts.contract import REFUSE, ContractSide
from ddib_fed.wire.contracts.guidance import GuidanceTerms


@dataclass(slots=True)
class NodeContext:
    """State shared by the services of one node.

    Several models may be warm: the active one, and others on which work that began with them is finished.
    """

    applied: Applied
    peers: PeerStore
    audit: AuditLog
    metrics: Metrics
    tracing: Tracing = OFF
    decoding: DecodingMemory = field(init=False)
    calibrations: CalibrationStore = field(init=False)
    peer_problems: PeerProblems = field(default_factory=PeerProblems)
    quotas: Ledger = field(init=False)
    _engine: ServingParty | None = None
    _softener: Softener | None = None
    _draining: threading.Event = field(default_factory=threading.Event)
    _warm: dict[str, LoadedModel] = field(default_factory=dict)
    _warm_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.decoding = DecodingMemory(self.config.limits.decode_memory_mib << 20)
        self.calibrations = CalibrationStore(self.config.paths.calibrations)
        self.quotas = Ledger(self.config.paths.quotas)

    @property
    def config(self) -> NodeConfig:
        """As it is applied now, in views too; see `Applied`."""
        return self.applied.config

    @config.setter
    def config(self, config: NodeConfig) -> None:
        self.applied.config = config

    @property
    def engine(self) -> ServingParty:
        """The warm engine.

        Raises:
            NotReady: The model is not loaded yet.
            Draining: The node accepts no more work.
        """
        if self._draining.is_set():
            raise Draining(retry_after_s=30)
        return self.running_engine

    @property
    def running_engine(self) -> ServingParty:
        """The warm engine, also for work that was accepted before draining began.

        Raises:
            NotReady: The model is not loaded yet.
        """
        if self._engine is None:
            raise NotReady(retry_after_s=5)
        return self._engine

    @property
    def active_digest(self) -> str:
        """Digest of the model with which new work begins.

        Raises:
            NotReady: The model is not loaded yet.
        """
        return self.running_engine.model.bundle.digest

    @property
    def draining(self) -> bool:
        """Whether the node only finishes accepted work."""
        return self._draining.is_set()

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded and warm."""
        return self._engine is not None

    def set_engine(self, engine: ServingParty) -> None:
        """Make a warm model the active one; work on others goes on.

        Raises:
            ConfigError: As `prepare`.
        """
        self.make_active(self.prepare(engine))

    def prepare(self, engine: ServingParty) -> LoadedModel:
        """What a warm model needs to become the active one; nothing changes for those who call.

        Raises:
            ConfigError: It is a picture model, and the softening key cannot be used; or the policy asks for an index of
                its training pictures, and there is none that can be used.
        """
        return self._load(engine, open_index(self.config, engine.model.bundle))

    def make_active(self, loaded: LoadedModel) -> None:
        """Make a prepared model the active one; work on others goes on."""
        with self._warm_lock:
            self._warm[loaded.engine.model.bundle.digest] = loaded
        self._softener = loaded.softener
        self._engine = loaded.engine

    def keep_warm(self, engine: ServingParty) -> None:
        """Have a warm model for work that began with it.

        Without an index of its training pictures, which the policy asks for, it is not used for decoding.

        Raises:
            ConfigError: It is a picture model, and the softening key cannot be used.
        """
        loaded = self._load(engine, find_index(self.config, engine.model.bundle))
        with self._warm_lock:
            self._warm[engine.model.bundle.digest] = loaded

    def _load(self, engine: ServingParty, index: TrainingIndex | None) -> LoadedModel:
        """The model as it lies among the warm ones, with those who use it already."""
        with self._warm_lock:
            known = self._warm.get(engine.model.bundle.digest)
            if known is not None and known.engine is engine:
                known.training_index = index
                return known
        return load_model(self.config, engine, index)

    def training_index_of(self, digest: str) -> TrainingIndex | None:
        """The index by which the training pictures of a warm model are recognised; None if it has none now."""
        with self._warm_lock:
            loaded = self._warm.get(digest)
            return None if loaded is None else loaded.training_index

    @property
    def training_index(self) -> TrainingIndex | None:
        """That of the active model; None also before it is loaded."""
        return self.training_index_of(self.active_digest) if self.loaded else None

    def set_training_indexes(self, indexes: Mapping[str, TrainingIndex | None]) -> None:
        """Replace the indexes of warm models, by the models' digests; those of models that are gone are ignored."""
        with self._warm_lock:
            for digest, index in indexes.items():
                if digest in self._warm:
                    self._warm[digest].training_index = index

    def is_warm(self, digest: str) -> bool:
        """Whether a model is loaded."""
        with self._warm_lock:
            return digest in self._warm

    @contextmanager
    def serving(self, digest: str) -> Iterator[NodeContext]:
        """A view of this node with one of its warm models, which stays for as long as this lasts.

        Raises:
            ModelNotFound: It is not loaded.
        """
        with self._warm_lock:
            loaded = self._warm.get(digest)
            if loaded is None:
                raise ModelNotFound(f"the model {digest[:12]} is not loaded")
            loaded.users += 1
        fixed = copy.copy(self)
        fixed._engine, fixed._softener = loaded.engine, loaded.softener  # noqa: SLF001 - its own class
        try:
            yield fixed
        finally:
            with self._warm_lock:
                loaded.users -= 1

    @contextmanager
    def serving_first(self, digests: Iterable[str] = ()) -> Iterator[NodeContext]:
        """As `serving`, with the first of these models that is loaded; with the active one where none is.

        It stays from the moment of the choice: no switch and no closing comes between.

        Raises:
            NotReady: The model is not loaded yet.
        """
        with self._warm_lock:
            digest = next((each for each in digests if each in self._warm), None) or self.active_digest
            loaded = self._warm[digest]
            loaded.users += 1
        try:
            with self.serving(digest) as node:
                yield node
        finally:
            with self._warm_lock:
                loaded.users -= 1

    def all_models(self) -> list[ServingParty]:
        """Every model that is loaded."""
        with self._warm_lock:
            return [loaded.engine for loaded in self._warm.values()]

    def retire(self, needed: Collection[str] = ()) -> list[ServingParty]:
        """The models that are neither active, nor in use, nor needed: no longer this node's, to be closed."""
        with self._warm_lock:
            going = [
                digest
                for digest, loaded in self._warm.items()
                if not loaded.users and loaded.engine is not self._engine and digest not in needed
            ]
            return [self._warm.pop(digest).engine for digest in going]

    @property
    def softener(self) -> Softener:
        """The source of softening noise of this node.

        Raises:
            NotReady: No model of pictures is loaded yet.
        """
        if self._softener is None:
            raise NotReady(retry_after_s=5)
        return self._softener

    def drain(self) -> None:
        """Stop accepting work."""
        self._draining.set()

    def side(self) -> ContractSide:
        """This node's half of a contract.

        Raises:
            NotReady: The model is not loaded yet.
        """
        bundle = self.running_engine.model.bundle  # once: another may become active meanwhile
        manifest, schedule = bundle.manifest, bundle.schedule
        classes = manifest.num_classes or 0
        return ContractSide(
            institution=self.config.node.institution,
            domain=self.config.model.domain,
            sample_kind=manifest.sample_kind,
            sample_shape=tuple(manifest.sample_shape),
            dtype="float32",
            model_sha256=bytes.fromhex(bundle.digest),
            terminal_lambda=schedule.lambda_min,
            initial_lambda=schedule.lambda_max,
            classes=classes,
            size_rule=size_rule_of(manifest, allowed=self.config.policy.size_rule),
            value_range=value_range_of(manifest),
            soften_sigma=manifest.soften_sigma,
            picture=terms_of(manifest),
            class_names=class_names_of(manifest),
        )

    def guidance(self) -> GuidanceTerms | None:
        """The guidance that this node offers for decoding, from its model and policy; None for none.

        Raises:
            NotReady: The model is not loaded yet.
        """
        return offered_guidance(self.running_engine.model, self.config.policy)

    @property
    def policy_sha256(self) -> str:
        """Digest of the policy that is applied now, hexadecimal."""
        return policy_digest(self.config)

    @property
    def units_sha256(self) -> str:
        """Digest of the units of this node's model, which calibrations are bound to; hexadecimal.

        Raises:
            NotReady: The model is not loaded yet.
        """
        return units_digest(self.running_engine.model.bundle.manifest.normalisation)

    def weight_of(self, institution: str) -> float:
        """The share of the engine that work for an institution has beside others."""
        return self.config.policy.weights.get(institution, 1.0)

    @property
    def translates_in_tiles(self) -> bool:
        """Whether clients are to cut pictures that are larger than the model's, instead of having them fitted."""
        picture = self.running_engine.model.bundle.manifest.picture
        return picture is not None and picture.tiles and self.config.policy.size_rule != REFUSE

    @property
    def size_rule(self) -> str:
        """How this node fits a picture to its model's size.

        Raises:
            NotReady: The model is not loaded yet.
        """
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

    def models_needed(self) -> Collection[str]:
        """Digests of the models with which accepted work began."""

    def close(self) -> None:
        """Stop at once; unfinished work continues at the next start. Calls may still be answered."""

    def release(self) -> None:
        """Close files and databases; no call is answered any more."""


class Role(Protocol):
    """The interface of an entry point of `ddib_fed.roles`."""

    name: str

    def check(self, config: NodeConfig) -> str:
        """What `open` would find, as a short text; changes nothing.

        Raises:
            DdibError: `open` would fail.
        """

    def copy(self, config: NodeConfig, to: Path) -> int:
        """Copy what the role alone keeps on disk, as it is at one moment, while a node may run.

        Args:
            config: Of the node.
            to: The copy's state folder, which may not be there yet; the layout is that of the node's own.

        Returns:
            How many jobs the copy holds.

        Raises:
            DdibError: It cannot be copied.
        """

    def open(self, node: NodeContext) -> RoleService:
        """The role in this node, not started yet.

        Raises:
            DdibError: Its files cannot be used.
        """


def find_roles(names: Iterable[str]) -> list[Role]:
    """The installed roles of these names.

    Raises:
        ConfigError: One of them is not installed.
    """
    installed = {point.name: point for point in entry_points(group="ddib_fed.roles")}
    missing = [name for name in names if name not in installed]
    if missing:
        raise ConfigError(
            f"no role {missing[0]!r} is installed (there are {', '.join(sorted(installed)) or 'none'})",
            hint="pip install 'ddib-fed[node]'",
        )
    return [installed[name].load() for name in names]
