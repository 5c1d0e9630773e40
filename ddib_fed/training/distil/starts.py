"""The samples that a model is distilled on, in its own units: of a synthetic domain, a user's points or pictures.

The party's own data alone: the teacher's paths to noise start from them. Held-out samples are never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets import synthetic
from ddib_fed.errors import SettingsInvalid, ShapeMismatch
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.carried import carried_domain
from ddib_fed.models.manifest import Manifest
from ddib_fed.samples.folders import expand
from ddib_fed.samples.scans import Progress
from ddib_fed.training.pictures.sources import PictureSource, as_trained, open_source
from ddib_fed.training.points import points_source
from ddib_fed.training.settings.config import PictureTrainConfig
from ddib_fed.training.settings.distil_config import DistilConfig

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Say = Callable[[str], None]

HELD_OUT_POINTS = 20_000
_HELD_OUT_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Starts:
    """Clean samples in the teacher's units."""

    digest: str
    take: Callable[[NDArray[np.float64]], tuple[Floats, Labels | None]]
    held_out: Floats
    held_out_labels: Labels | None = None


def open_starts(
    config: DistilConfig, teacher: Bundle, *, say: Say | None = None, progress: Progress | None = None
) -> Starts:
    """The samples that `config` names; without a name those that packages carry, if the teacher was trained on them."""
    manifest = teacher.manifest
    domain = config.domain
    if domain is None and config.data is None and config.images is None:
        domain = carried_domain(manifest)
        if domain is None:
            option = "--images FOLDER" if manifest.sample_kind == "picture" else "--data FILE.npy"
            raise SettingsInvalid(
                f"no package carries the samples that {manifest.name} was trained on, and none are named",
                hint=f"{option}: the samples that it was trained on",
            )
    if manifest.sample_kind == "point":
        if config.images is not None:
            raise SettingsInvalid(
                f"{manifest.name} is a model of points, and --images names pictures", hint="--data FILE.npy"
            )
        found = _of_points(config.data, domain, manifest)
    else:
        if config.data is not None:
            raise SettingsInvalid(
                f"{manifest.name} is a model of pictures, and --data names points", hint="--images FOLDER"
            )
        found = _of_pictures(config, domain, manifest, say, progress)
    if found.held_out.shape[1:] != tuple(manifest.sample_shape):
        raise ShapeMismatch(
            f"samples of shape {found.held_out.shape[1:]} where {manifest.name} takes {tuple(manifest.sample_shape)}",
            hint="name the samples that it was trained on",
        )
    return found


def _of_points(data: Path | None, domain: str | None, manifest: Manifest) -> Starts:
    normal = manifest.normalisation
    if data is None:
        name = synthetic.domain_name(str(domain))
        held_out = synthetic.draw(name, HELD_OUT_POINTS, _HELD_OUT_SEED)
        return Starts(f"domain:{name}", lambda u: (synthetic.from_uniforms(name, u), None), held_out)
    source = points_source(data, HELD_OUT_POINTS)

    def own(points: Floats) -> Floats:
        return normal.apply(points.astype(np.float64) * source.std + source.mean)

    return Starts(source.digest, lambda u: (own(source.take(u)), None), own(source.held_out))


def _of_pictures(
    config: DistilConfig, domain: str | None, manifest: Manifest, say: Say | None, progress: Progress | None
) -> Starts:
    source = open_source(_reading(config, domain, manifest), say=say, progress=progress)
    _check_classes(source, manifest)
    apply = manifest.normalisation.apply

    def take(u: NDArray[np.float64]) -> tuple[Floats, Labels | None]:
        chosen = (u[:, 0] * len(source.train)).astype(np.int64)
        labels = None if source.labels is None else source.labels[chosen]
        return apply(expand(source.train[chosen])), labels

    return Starts(source.digest, take, apply(expand(source.held_out)), source.held_out_labels)


def _reading(config: DistilConfig, domain: str | None, manifest: Manifest) -> PictureTrainConfig:
    if config.images is None:
        return PictureTrainConfig(domain=domain)
    return as_trained(manifest, config.images, classes=config.classes, skip_bad=config.skip_bad)


def _check_classes(source: PictureSource, manifest: Manifest) -> None:
    if manifest.num_classes is None:
        return
    if source.labels is None:
        raise SettingsInvalid(
            f"{manifest.name} has classes, and the pictures have none",
            hint="--classes folders or --classes prefix says where they are",
        )
    if len(source.classes) != manifest.num_classes or (
        manifest.classes and source.classes != manifest.classes
    ):
        raise SettingsInvalid(
            f"the classes of the pictures are not those of {manifest.name}",
            hint="name the pictures that it was trained on",
        )
