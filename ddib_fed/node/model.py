"""Opens the bundle named in node.toml and refuses one that the node must not serve."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from ddib_fed.data.fitting import PictureRule
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.executors import Pool, process_pool
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.ray_actors import ray_pool
from ddib_fed.errors import (
    BundleInvalid,
    Cancelled,
    ConfigError,
    DdibError,
    ImageTooLarge,
    MemoryExhausted,
    SettingsInvalid,
)
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.manifest import Manifest, PictureFormat, check_guide
from ddib_fed.names import size_from
from ddib_fed.node.config import LimitsSection, NodeConfig
from ddib_fed.protocol.contract import (
    HIGHEST_TERMINAL_LAMBDA,
    MAX_CLASS_NAMES,
    REFUSE,
    VALUE_RANGES,
    ContractSide,
    PictureTerms,
    is_class_name,
)
from ddib_fed.v1 import common_pb2

MIB = 1 << 20
SMALL: Final = 4
"""Small files share a quarter of the budget in addition to it."""
LOOK_S: Final = 0.5
"""How often a waiting file looks whether its call has ended."""


class DecodingMemory:
    """What the decoding of pictures may take at once, shared by a node's threads.

    Small files have a quarter of the budget beside it, so that they do not wait for large ones. Clients take turns,
    and one client has at most `of_one` files decoded at once.
    """

    def __init__(self, total_bytes: int, of_one: int = max(1, (os.cpu_count() or 1) // 2)) -> None:
        self._total, self._of_one = total_bytes, of_one
        self._small = total_bytes // SMALL
        self._free = {True: self._small, False: total_bytes}
        self._files: list[_File] = []
        """Those that wait, in the order of their turns."""
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()

    @property
    def taken_bytes(self) -> int:
        return self._small + self._total - sum(self._free.values())

    @property
    def waiting(self) -> int:
        with self._changed:
            return len(self._files)

    @contextmanager
    def file(
        self,
        client: str,
        size_bytes: int,
        load: Callable[[], bytes],
        cost: Callable[[bytes], int],
        *,
        ended: Callable[[], bool] = lambda: False,
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[bytes]:
        """A file's content, with its memory reserved while it is used."""
        with self.work(client, size_bytes, ended=ended, too_large=too_large):
            need = size_bytes + cost(load())
        with self.work(client, need, ended=ended, too_large=too_large):
            yield load()

    @contextmanager
    def work(
        self,
        client: str,
        size_bytes: int,
        *,
        ended: Callable[[], bool] = lambda: False,
        too_large: type[DdibError] = ImageTooLarge,
    ) -> Iterator[None]:
        """Reserve memory."""
        if size_bytes > self._total:
            raise too_large(
                f"it takes {size_bytes // MIB} MiB of memory to decode, {self._total // MIB} are the limit",
                hint="make the picture smaller, or let the node's operator raise limits.decode_memory_mib",
                facts={"memory_mib": size_bytes // MIB, "limit_mib": self._total // MIB},
            )
        file = _File(client, size_bytes, is_small=size_bytes <= self._small)
        with self._changed:
            self._files.append(file)
            self._hand_out()
            while not (file.has_memory or ended()):
                self._changed.wait(LOOK_S)
            if not file.has_memory:
                self._files.remove(file)
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
            while file := next((each for each in self._files if self._is_next(each, is_small)), None):
                if file.size_bytes > self._free[is_small]:
                    break
                self._free[is_small] -= file.size_bytes
                file.has_memory = True
                self._running[file.client] += 1
                # The client's next turn is after those of all others.
                own = [each for each in self._files if each.client == file.client and each is not file]
                self._files = [each for each in self._files if each.client != file.client] + own
        self._changed.notify_all()

    def _is_next(self, file: _File, is_small: bool) -> bool:
        return file.is_small == is_small and self._running[file.client] < self._of_one


@dataclass(slots=True, eq=False)
class _File:
    client: str
    size_bytes: int
    is_small: bool
    has_memory: bool = False


TRIAL_ROWS, TRIAL_PIXELS = 2_048, 65_536
"""Sizes of calls where nobody looks which are best."""


def load_hosted(config: NodeConfig) -> Bundle:
    """The verified bundle that node.toml names."""
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
    """The verified classifier that node.toml names for guiding the model; None where it names none."""
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
    """Load and warm up the model of a node, here or in its workers."""
    section = config.engine
    bundle = load_hosted(config)
    classifier = load_classifier(config, bundle)
    options: dict[str, Any] = {
        "device": section.device,
        "threads": section.threads,
        "dtype": section.dtype,
        "compiling": section.compile,
        "merge_rows": TRIAL_ROWS if trial else 0,
        "merge_pixels": section.merge_pixels or (TRIAL_PIXELS if trial else 0),
        "costs": None if trial else config.paths.costs,
    }
    try:
        if section.executor == "inline":
            return ServingParty(bundle, classifier=classifier, **options)
        recipe = Recipe(bundle, classifier, **options)
        if section.executor == "processes":
            pool: Pool = process_pool(recipe, workers=section.workers)
        elif section.ray_address:
            pool = ray_pool(recipe, address=section.ray_address, workers=section.workers)
        else:
            raise ConfigError(
                f'{config.path} says executor = "ray", and not where the cluster is',
                hint='ray_address = "HOST:6379" in [engine], the address of its head; "local" starts one here',
            )
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


MEDIA_FORMATS = {
    common_pb2.MEDIA_TYPE_NPY: "NPY",
    common_pb2.MEDIA_TYPE_PNG: "PNG",
    common_pb2.MEDIA_TYPE_JPEG: "JPEG",
    common_pb2.MEDIA_TYPE_TIFF: "TIFF",
}

MEDIA_TYPES = {name: media for media, name in MEDIA_FORMATS.items()}


def limits_of(section: LimitsSection) -> ImageLimits:
    """The limits on a client's picture, from node.toml."""
    return ImageLimits(max_bytes=section.max_item_bytes, max_pixels=section.max_pixels)


def side_of(bundle: Bundle, config: NodeConfig) -> ContractSide:
    """A node's half of a contract, with the model that it hosts."""
    manifest, picture, names = bundle.manifest, None, bundle.manifest.classes
    if manifest.sample_kind == "picture":
        form = manifest.picture or PictureFormat()
        picture = PictureTerms(form.low, form.high, form.bits)
    usual, *others = VALUE_RANGES[manifest.sample_kind]
    named = len(names) <= MAX_CLASS_NAMES and all(map(is_class_name, names))
    return ContractSide(
        institution=config.node.institution,
        domain=config.model.domain,
        sample_kind=manifest.sample_kind,
        sample_shape=tuple(manifest.sample_shape),
        model_sha256=bytes.fromhex(bundle.digest),
        terminal_lambda=bundle.schedule.lambda_min,
        initial_lambda=bundle.schedule.lambda_max,
        classes=manifest.num_classes or 0,
        size_rule=size_rule_of(manifest, allowed=config.policy.size_rule),
        value_range=usual if manifest.normalisation.colours == "rgb" else others[0],
        soften_sigma=manifest.soften_sigma,
        picture=picture,
        class_names=tuple(names) if named else (),
    )


def size_rule_of(manifest: Manifest, *, allowed: str) -> str:
    """How a node fits pictures to a model's size, as a contract names it; `allowed` is `[policy] size_rule`."""
    if manifest.sample_kind != "picture":
        return "none"
    return REFUSE if allowed == REFUSE else picture_rule(manifest).fit


def rule_of_side(side: ContractSide) -> PictureRule | None:
    """How the other side's pictures become files; its fit is not known here. None for points."""
    if side.picture is None:
        return None
    channels, height, width = side.sample_shape
    terms = side.picture
    return PictureRule(channels, height, width, "resize", terms.low, terms.high, terms.bits)
