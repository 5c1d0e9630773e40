"""What the roles of a node share: their interface, the model that they serve, its memory, and settings of a leg."""

import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final, cast, get_args

import grpc
import torch

from ddib_fed.calibration.record import CalibrationStore, units_of
from ddib_fed.data.fitting import Fit, PictureRule
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Recipe
from ddib_fed.engine.executors import Pool, process_pool
from ddib_fed.engine.gate import Softener, load_key
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.errors import (
    BundleInvalid,
    Cancelled,
    ConfigError,
    DdibError,
    Draining,
    MemoryExhausted,
    NotReady,
    SettingsInvalid,
)
from ddib_fed.evaluation.samples import Samples, samples_of
from ddib_fed.extensions import extension
from ddib_fed.metrics import picture_rule
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.manifest import PictureFormat, check_guide
from ddib_fed.names import size_from
from ddib_fed.node.admin import Metrics
from ddib_fed.node.config import MAX_POINTS_PER_ITEM, NodeConfig
from ddib_fed.node.policy import Quotas, offered_guidance, policy_digest
from ddib_fed.protocol.contract import (
    HIGHEST_TERMINAL_LAMBDA,
    MAX_CLASS_NAMES,
    REFUSE,
    VALUE_RANGES,
    Contract,
    is_class_name,
)
from ddib_fed.protocol.messages import settings_to_pb
from ddib_fed.record import Settings
from ddib_fed.security.audit import RECEIPT, AuditLog, Exchanged, Value
from ddib_fed.security.peers import PeerStore
from ddib_fed.telemetry import OFF, Tracing
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.common_pb2 import GuidanceTerms, PictureTerms
from ddib_fed.v1.decoding_pb2 import ContractSide

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
SMALL: Final = 4
"""Small files share a quarter of the budget in addition to it."""
LOOK_S: Final = 0.5
TRIAL_ROWS, TRIAL_PIXELS = 2_048, 65_536
"""Fixed batch sizes are used when the best ones are not measured."""
MEDIA_TYPES: Final = {
    name: common_pb2.MediaType.Value(f"MEDIA_TYPE_{name}") for name in ("NPY", "PNG", "JPEG", "TIFF")
}
MEDIA_FORMATS: Final = {media: name for name, media in MEDIA_TYPES.items()}


class PeerProblems:
    """The last failure of each peer since its last success; safe to use from any thread."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[datetime, str]] = {}

    def failed(self, institution: str, error: DdibError) -> None:
        self._last[institution] = datetime.now(UTC), f"{error.detail} [{error.reason}]"

    def answered(self, institution: str) -> None:
        self._last.pop(institution, None)

    def of(self, institution: str) -> tuple[datetime | None, str]:
        return self._last.get(institution, (None, ""))


@dataclass(eq=False)
class NodeContext:
    config: NodeConfig
    peers: PeerStore
    audit: AuditLog
    metrics: Metrics
    tracing: Tracing = OFF
    draining: bool = False
    _engine: ServingParty | None = field(default=None, init=False)
    _softener: Softener | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.decoding = DecodingMemory(self.config.limits.decode_memory_mib * MIB)
        self.calibrations = CalibrationStore(self.config.paths.calibrations)
        self.peer_problems = PeerProblems()
        self.quotas = Quotas(self.audit.store)

    @property
    def engine(self) -> ServingParty:
        if self.draining:
            raise Draining(retry_after_s=30)
        return self.running_engine

    @property
    def running_engine(self) -> ServingParty:
        """The warm engine, also for work that was accepted before draining began."""
        if self._engine is None:
            raise NotReady(retry_after_s=5)
        return self._engine

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    def set_engine(self, engine: ServingParty) -> None:
        bundle = engine.model.bundle
        if bundle.manifest.sample_kind != "point":
            self._softener = Softener(load_key(self.config.paths.softening_key), bundle.digest)
        self._engine = engine

    @property
    def softener(self) -> Softener:
        if self._softener is None:
            raise NotReady(retry_after_s=5)
        return self._softener

    def write_audit(self, act: str, lines: Sequence[Mapping[str, Value]]) -> None:
        """Write lines of the audit log, without which the act is refused."""
        try:
            self.audit.write_each(act, lines)
        except OSError as error:
            log.exception("the audit log cannot be written: %s is refused", act)
            raise NotReady("the audit log cannot be written", retry_after_s=30) from error

    def write_receipt(self, peer: str, contract: Contract, exchanged: Exchanged, **call: str) -> None:
        """Record the items and bytes of a call, and the peer's anchor; its latents are recorded already."""
        line = {"contract": contract.digest.hex(), "policy": self.policy_sha256, **exchanged.values()}
        try:
            self.audit.write(RECEIPT, **call, peer=peer, **line)
        except OSError:
            log.exception("the receipt of %s could not be written to the audit log", call)

    def side(self) -> ContractSide:
        bundle = self.running_engine.model.bundle
        manifest, picture, names = bundle.manifest, None, bundle.manifest.classes
        form, latents = manifest.picture or PictureFormat(), manifest.latents
        if manifest.sample_kind != "point":
            picture = PictureTerms(low=form.low, high=form.high, bits=form.bits)
        usual, *others = VALUE_RANGES[manifest.sample_kind]
        named = len(names) <= MAX_CLASS_NAMES and all(map(is_class_name, names))
        return ContractSide(
            institution=self.config.node.institution,
            domain=self.config.model.domain,
            sample_kind=manifest.sample_kind,
            sample_shape=manifest.sample_shape,
            model_sha256=bytes.fromhex(bundle.digest),
            terminal_lambda=bundle.schedule.lambda_min,
            initial_lambda=bundle.schedule.lambda_max,
            classes=manifest.num_classes or 0,
            size_rule=self.size_rule,
            value_range=usual if manifest.normalisation.colours == "rgb" else others[0],
            soften_sigma=manifest.soften_sigma,
            picture=picture,
            class_names=names if named else (),
            latent_shape=() if latents is None else latents.shape,
            autoencoder_sha256=b"" if latents is None else bytes.fromhex(latents.autoencoder_sha256),
            spacing_mm=form.spacing or (),
            shared_noise=self.config.policy.shared_noise,
        )

    def samples(self) -> Samples:
        """Return the reader and writer of files of the model's kind, within the node's limits."""
        limits = self.config.limits
        pictures = ImageLimits(max_bytes=limits.max_item_bytes, max_pixels=limits.max_pixels)
        return samples_of(self.running_engine.model, pictures, MAX_POINTS_PER_ITEM)

    def guidance(self) -> GuidanceTerms:
        return offered_guidance(self.running_engine.model, self.config.policy)

    @property
    def policy_sha256(self) -> str:
        return policy_digest(self.config)

    @property
    def units_sha256(self) -> tuple[str, ...]:
        """Digests of the units that calibrations of the model may be in."""
        return units_of(self.running_engine.model.manifest)

    @property
    def translates_in_tiles(self) -> bool:
        picture = self.running_engine.model.bundle.manifest.picture
        return picture is not None and picture.tiles and self.size_rule != REFUSE

    @property
    def size_rule(self) -> str:
        """How pictures are fitted to the model's size, as a contract names it."""
        manifest = self.running_engine.model.bundle.manifest
        if manifest.sample_kind == "point":
            return "none"
        refuses = manifest.sample_kind == "volume" or self.config.policy.size_rule == REFUSE
        return REFUSE if refuses else picture_rule(manifest).fit


class RoleService:
    """A running role of one node, not started yet; what a role does not need, it leaves as it is here."""

    service_names: tuple[str, ...]

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    @classmethod
    def check(cls, config: NodeConfig) -> str:  # noqa: ARG003
        """Return the outcome of a start as a short text, changing nothing."""
        return "nothing to check"

    def register(self, server: grpc.Server) -> None:
        """Add the servicers; called before the model is loaded."""

    def start(self) -> None:
        """Start with the waiting work: the model is warm."""

    def jobs(self) -> Mapping[str, int]:
        return {}

    def drain(self, timeout_s: float) -> None:
        """Return when running work is finished, or after the time."""

    def peers_changed(self) -> None:
        """End what belongs to removed peers, beside their calls."""

    def close(self) -> None:
        """Stop at once; unfinished work continues at the next start. Calls may still be answered."""

    def release(self) -> None:
        """Close files and databases; no call is answered any more."""


def find_roles(names: Iterable[str]) -> list[type[RoleService]]:
    """Import the roles of these names; their packages are above this one, which imports none of them itself."""
    return [import_module(f"{name}_node.service").ROLE for name in names]


def load_hosted(config: NodeConfig) -> Bundle:
    place = config.paths.bundle
    bundle = load_bundle(place)
    expected, named = config.model.bundle_domain or config.model.domain, bundle.manifest.domain
    if named != expected:
        raise ConfigError(
            f"the bundle {place} is of the domain {named!a}, and {config.path} says {expected!a}",
            hint=f"put the model of {expected} there; or, where it is that model under another name, write "
            f'bundle_domain = "{named}" into [model] of {config.path}',
        )
    terminal = bundle.schedule.lambda_min
    if bundle.manifest.role == "generator" and terminal > HIGHEST_TERMINAL_LAMBDA:
        raise BundleInvalid(
            f"the schedule of {place} ends at lambda {terminal:.2f}, and each contract needs "
            f"{HIGHEST_TERMINAL_LAMBDA} or less",
            hint="train it with a schedule that ends in noise, e.g. the default one",
        )
    if config.model.scene is None:
        return bundle
    try:
        return bundle.of_scenes(*size_from(config.model.scene))
    except SettingsInvalid as error:
        raise ConfigError(
            f"scene = {config.model.scene!a} in [model] of {config.path} cannot be used: {error.detail}",
            hint=error.hint,
        ) from error


def load_classifier(config: NodeConfig, bundle: Bundle) -> Bundle | None:
    """Return the verified classifier that node.toml names for guiding the model; None if it names none."""
    place = config.paths.classifier
    if place is None:
        return None
    classifier = load_bundle(place)
    hint = (
        f"name another folder as [model] classifier in {config.path}, or leave it out; "
        "ddib model show FOLDER says what one is"
    )
    if classifier.manifest.role != "classifier":
        raise ConfigError(f"{place} is a {classifier.manifest.role}, not a classifier", hint=hint)
    try:
        check_guide(bundle.manifest, classifier.manifest)
    except SettingsInvalid as error:
        raise ConfigError(f"{place} cannot guide {config.paths.bundle}: {error.detail}", hint=hint) from error
    return classifier


def open_engine(config: NodeConfig, *, trial: bool = False) -> ServingParty:
    section = config.engine
    bundle = load_hosted(config)
    classifier = load_classifier(config, bundle)
    options: dict[str, Any] = {
        "device": section.device,
        "threads": section.threads,
        "dtype": section.dtype,
        "merge_rows": TRIAL_ROWS if trial else 0,
        "merge_pixels": section.merge_pixels or (TRIAL_PIXELS if trial else 0),
    }
    try:
        if section.executor == "inline":
            return ServingParty(bundle, classifier=classifier, **options)
        recipe = Recipe(bundle, classifier, **options)
        if section.executor == "processes":
            pool: Pool = process_pool(recipe, workers=section.workers)
        else:
            make = extension("ddib_fed.executors", section.executor)
            pool = make(recipe, address=section.ray_address, workers=section.workers)
        return ServingParty(bundle, classifier=classifier, threads=section.threads, pool=pool)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MemoryExhausted(
            f"the model {config.paths.bundle} does not fit into the memory of {section.device}",
            hint="a smaller engine.merge_pixels, or another engine.device",
        ) from error
    except RuntimeError as error:  # what torch raises for an operation that a device or dtype lacks
        raise ConfigError(
            f"the model {config.paths.bundle} cannot run on engine.device = {section.device!a} in "
            f"engine.dtype = {section.dtype!a}: {str(error).partition(chr(10))[0]}",
            hint='engine.dtype = "float32", or another engine.device',
        ) from error


def rule_of_side(side: ContractSide) -> PictureRule | None:
    """Return how the other side's samples become files, without a fit if it refuses other sizes; None for points."""
    if not side.HasField("picture"):
        return None
    channels, *rows, width = side.sample_shape  # slices of a volume lie one under the other
    fit = cast("Fit", side.size_rule) if side.size_rule in get_args(Fit) else "resize"
    terms = side.picture
    return PictureRule(channels, math.prod(rows), width, fit, terms.low, terms.high, terms.bits)


@dataclass(slots=True, eq=False)
class _File:
    client: str
    size_bytes: int
    is_small: bool
    has_memory: bool = False


HELD_BYTES = 1 << 16
"""A smaller file is held in memory while it waits for the memory of its decoding."""


class DecodingMemory:
    """What the decoding of pictures may take at once, shared by a node's threads.

    Small files have a quarter of the budget beside it, so that they do not wait for large ones. Clients take turns,
    and one client has at most `of_one` files decoded at once.
    """

    def __init__(self, total_bytes: int, of_one: int = max(1, (os.cpu_count() or 1) // 2)) -> None:
        self._total, self._of_one = total_bytes, of_one
        self._small = total_bytes // SMALL
        self._free = {True: self._small, False: total_bytes}
        self._waiting: list[_File] = []
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        return self._small + self._total - sum(self._free.values())

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @contextmanager
    def file(
        self,
        client: str,
        size_bytes: int,
        load: Callable[[], bytes],
        cost: Callable[[bytes], int],
        *,
        ended: Callable[[], bool] = lambda: False,
    ) -> Iterator[bytes]:
        """Yield a file's content, its memory reserved meanwhile; a larger file is loaded twice and held once."""
        held = size_bytes <= HELD_BYTES
        with self.work(client, size_bytes, ended=ended):
            content = load()
            need = size_bytes + cost(content)
            if not held:
                del content
        with self.work(client, need, ended=ended):
            yield content if held else load()

    @contextmanager
    def work(
        self, client: str, size_bytes: int, *, ended: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        hint = "make the picture smaller, or let the node's operator raise limits.decode_memory_mib"
        ImageLimits(max_memory=self._total).check_memory(size_bytes, hint)
        file = _File(client, size_bytes, is_small=size_bytes <= self._small)
        with self._changed:
            self._waiting.append(file)
            self._hand_out()
            while not (file.has_memory or ended()):
                self._changed.wait(LOOK_S)
            if not file.has_memory:
                self._waiting.remove(file)
                self._hand_out()
                raise Cancelled("the call has ended for which a file was to be decoded")
        try:
            yield
        finally:
            with self._changed:
                self._free[file.is_small] += size_bytes
                self._running[client] -= 1
                self._running += Counter()  # forgets clients that have none
                self._hand_out()

    def _hand_out(self) -> None:
        """Give memory to the next file of each part, for as long as it fits: nobody overtakes it."""
        for is_small in (True, False):
            while file := next(
                (waiting for waiting in self._waiting if self._is_next(waiting, is_small)), None
            ):
                if file.size_bytes > self._free[is_small]:
                    break
                self._free[is_small] -= file.size_bytes
                file.has_memory = True
                self._running[file.client] += 1
                self._waiting.remove(file)
                # The client's next turn is after those of all others.
                self._waiting.sort(key=lambda waiting: waiting.client == file.client)
        self._changed.notify_all()

    def _is_next(self, file: _File, is_small: bool) -> bool:
        return file.is_small == is_small and self._running[file.client] < self._of_one


def solver_settings(like: common_pb2.SolverSettings) -> SolverSettings:
    """Return settings for the engine; absent fields, empty names and impossible zeros become defaults."""
    set_ = {field.name for field, value in like.ListFields() if field.has_presence or value}
    return SolverSettings(**{name: getattr(like, name) for name in set_})


def settings_message(settings: SolverSettings) -> common_pb2.SolverSettings:
    if settings.in_one_process:
        raise SettingsInvalid(
            "noise in decoding, and the public code's schedules and respacings, do not travel between nodes",
            hint="leave them out, or use `ddib translate --source` in one process",
        )
    return settings_to_pb(Settings.like(settings))
