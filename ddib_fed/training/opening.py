"""The data of a run: points, pictures, or a teacher with its samples, read once; and the task on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.datasets.synthetic import domain_name
from ddib_fed.models.bundle import load_bundle
from ddib_fed.samples.scans import require_outside
from ddib_fed.training.distil.task import DistilTask, open_lesson
from ddib_fed.training.loop.trainer import Task
from ddib_fed.training.pictures.calibrated import map_digest
from ddib_fed.training.pictures.initial import open_start
from ddib_fed.training.pictures.sources import PictureSource, open_source
from ddib_fed.training.pictures.task import PictureTask
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.settings.config import (
    AnyConfig,
    ClassifierTrainConfig,
    PictureTrainConfig,
    PointTrainConfig,
)
from ddib_fed.training.settings.distil_config import DistilConfig

Say = Callable[[str], None]
OnScan = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """A run whose data were read."""

    config: AnyConfig
    name: str
    digest: str
    task: Callable[[Any], Task]
    samples: int = 0


def open_data(
    config: AnyConfig, source: PictureSource | None, out: Path, say: Say | None, on_scan: OnScan | None
) -> Opened:
    """Read what a run learns from."""
    if isinstance(config, PointTrainConfig):
        return _open_points(config)
    if isinstance(config, DistilConfig):
        return _open_lesson(config, out, say, on_scan)
    return _open_pictures(config, source, out, say, on_scan)


def _open_points(config: PointTrainConfig) -> Opened:
    if config.domain is not None:
        config = config.model_copy(update={"domain": domain_name(config.domain)})
    source = open_points(config)
    return Opened(
        config, config.label, source.digest, lambda settled: PointTask(settled, source), len(source.train)
    )


def _open_lesson(config: DistilConfig, out: Path, say: Say | None, on_scan: OnScan | None) -> Opened:
    if config.images is not None:
        require_outside(out, config.images)
    lesson = open_lesson(config, say=say, progress=on_scan)
    made = lesson.teacher.manifest
    return Opened(
        lesson.config, made.domain, lesson.starts.digest, lambda settled: DistilTask(settled, lesson)
    )


def _open_pictures(
    config: PictureTrainConfig,
    source: PictureSource | None,
    out: Path,
    say: Say | None,
    on_scan: OnScan | None,
) -> Opened:
    if config.images is not None:
        require_outside(out, config.images)
    pictures = open_source(config, source, say=say, progress=on_scan)
    found: dict[str, Any] = {}
    name = config.domain or pictures.name
    if config.images is not None:
        found["channels"] = pictures.shape[0]
    start = open_start(config, pictures)
    if start.bundle is not None:
        found["init_digest"] = start.bundle.digest
    if start.bundle is not None and start.normal is not None and start.normal.calibrated is not None:
        found["calibration_digest"] = map_digest(start.normal.calibrated)
        name = start.bundle.manifest.domain  # the calibration's: a node of that domain is to serve it
        if "soften_sigma" not in config.model_fields_set:
            # Both sides of a bridge soften alike, so the run keeps what the model had.
            found["soften_sigma"] = start.bundle.manifest.soften_sigma
    if isinstance(config, ClassifierTrainConfig) and config.generator is not None:
        found["generator_digest"] = load_bundle(config.generator).digest
    return Opened(
        config.model_copy(update=found),
        name,
        pictures.digest,
        lambda settled: PictureTask(settled, pictures, start),
        len(pictures.train),
    )
