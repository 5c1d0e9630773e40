"""The data of a run, read once, the task on them, and what takes its steps; by the type of the run's settings."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.datasets.synthetic import domain_name
from ddib_fed.models.bundle import load_bundle
from ddib_fed.samples.scans import require_outside
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.loop.checkpoint import Checkpoint
from ddib_fed.training.loop.distributed import World
from ddib_fed.training.loop.trainer import Task, Trainer
from ddib_fed.training.pictures.calibrated import map_digest
from ddib_fed.training.pictures.initial import open_start
from ddib_fed.training.pictures.sources import PictureSource, open_source
from ddib_fed.training.pictures.task import PictureTask
from ddib_fed.training.points import PointTask, open_points

Say = Callable[[str], None]
OnScan = Callable[[int, int], None]


def _ordinary(task: Task, world: World, run: Path, checkpoint: Checkpoint | None) -> Trainer:
    del run, checkpoint
    return Trainer(task, world)


@dataclass(frozen=True, slots=True)
class Opened:
    """A run whose data were read."""

    config: Any
    name: str
    digest: str
    task: Callable[[Any], Task]
    samples: int = 0
    trainer: Callable[[Any, World, Path, Checkpoint | None], Trainer] = _ordinary
    """What takes the steps, given the run's folder and the checkpoint that it resumes from."""
    fixed_length: bool = False
    """Whether the number of steps is never fitted to a time, nor added to."""
    after: Callable[[Path], None] = lambda _: None
    """Called with the run's folder once the bundle is there."""


def open_run(
    config: TrainConfig,
    source: PictureSource | None,
    out: Path,
    say: Say | None,
    on_scan: OnScan | None,
    tasks: tuple[type[PointTask], type[PictureTask]] = (PointTask, PictureTask),
) -> Opened:
    """Read what a run on points or pictures learns from."""
    if config.kind == "points":
        if config.domain is not None:
            config = config.model_copy(update={"domain": domain_name(config.domain)})
        points = open_points(config)
        return Opened(
            config, config.label, points.digest, lambda settled: tasks[0](settled, points), len(points.train)
        )
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
    if config.generator is not None:
        found["generator_digest"] = load_bundle(config.generator).digest
    return Opened(
        config.model_copy(update=found),
        name,
        pictures.digest,
        lambda settled: tasks[1](settled, pictures, start),
        len(pictures.train),
    )


def open_data(
    config: TrainConfig, source: PictureSource | None, out: Path, say: Say | None, on_scan: OnScan | None
) -> Opened:
    """The run with its data read, by what the type of its settings names."""
    module, _, name = config.opener.partition(":")
    found: Opened = getattr(importlib.import_module(module), name)(config, source, out, say, on_scan)
    return found
