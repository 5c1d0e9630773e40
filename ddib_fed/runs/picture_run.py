"""A run over a folder of pictures: translations with records, a report and a contact sheet.

out/run.json             what is asked for, written first
out/NAME.png, NAME.json  each picture's translation and its record (`picture_worker`)
out/sheet.png            source, translated, back
out/report.json          all records in one, written last
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.bridge.arrays import check_translation
from ddib_fed.datasets.imagenet import paired_pictures, source_name
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import (
    AlreadyExists,
    DdibError,
    PictureMisfit,
    SettingsInvalid,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.files import read_json, write_json
from ddib_fed.metrics.structure import Thresholds
from ddib_fed.models.manifest import Manifest
from ddib_fed.names import names_apart
from ddib_fed.processes import require_alone
from ddib_fed.runs.outcomes import scene_for
from ddib_fed.runs.picture_recipe import (
    REPORT_FILE,
    RUN_FILE,
    Recipe,
    Task,
    batches,
    check_names,
)
from ddib_fed.runs.picture_report import Settled, finish
from ddib_fed.runs.picture_worker import (
    Opener,
    Translator,
    asked_of,
    finished,
    model_digests,
    open_parties,
)
from ddib_fed.samples.images import ImageLimits, PictureRule, check_fit, read_image
from ddib_fed.samples.scans import Entry, describe, require_outside, scan
from ddib_fed.samples.units import name_misfit

# Told (done, in all, remark).
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The pictures of a folder."""

    folder: Path
    tasks: tuple[Task, ...]
    bad: tuple[tuple[Path, str], ...]


def folder_tasks(
    folder: Path,
    *,
    classes: tuple[int | None, int | None] = (None, None),
    limit: int | None = None,
    limits: ImageLimits | None = None,
    skip_bad: bool = False,
    rule: PictureRule | None = None,
    on_progress: OnProgress | None = None,
) -> Found:
    """Every picture below a folder, or one picture, each of it of one class."""
    show = on_progress or _silent
    found = scan(
        folder,
        limits=limits,
        skip_bad=skip_bad,
        check=None if rule is None else lambda picture: check_fit(picture, rule),
        progress=lambda done, total: show(done, total, "looking at files"),
    )
    return Found(folder, entry_tasks(folder, found.entries[:limit], classes=classes), found.bad)


def entry_tasks(
    folder: Path, entries: Sequence[Entry], *, classes: tuple[int | None, int | None] = (None, None)
) -> tuple[Task, ...]:
    """Tasks for some pictures of a scanned folder, each of one class before and after."""
    root = folder if folder.is_dir() else folder.parent
    shown = [entry.path.relative_to(root).as_posix() for entry in entries]
    return tuple(
        Task(entry.path, each, name, entry.digest, *classes, (entry.looks.height, entry.looks.width))
        for entry, each, name in zip(entries, shown, names_apart(shown), strict=True)
    )


def own_scene(found: Found) -> tuple[int, int]:
    """Height and width of the pictures of a folder, for a `Recipe.scene` that resizes none."""
    first = found.tasks[0]
    for task in found.tasks:
        if task.size is None or task.size != first.size:
            sizes = " and ".join(
                f"{each.shown} {'x'.join(map(str, each.size or ('?',)))}" for each in (first, task)
            )
            raise UsageError(
                f"scenes of one run have one size, and these are of several: {sizes}",
                hint="--scene HEIGHTxWIDTH brings all to one size, or translate them one by one",
            )
    assert first.size is not None
    return first.size


def usual_scene(found: Found, source: Manifest, settings: SolverSettings) -> tuple[int, int] | None:
    """As `scene_for`, of the pictures of a folder: one run has scenes of one size."""
    sizes = {task.size for task in found.tasks}
    (size,) = sizes if len(sizes) == 1 else (None,)
    return None if size is None else scene_for(source, size, settings)


def class_tasks(
    folder: Path,
    pairs: Sequence[tuple[int, int]],
    *,
    class_names: Sequence[str] = (),
    labels: Path | None = None,
    limit: int | None = None,
    limits: ImageLimits | None = None,
    skip_bad: bool = False,
    rule: PictureRule | None = None,
    on_progress: OnProgress | None = None,
) -> Found:
    """The pictures of some classes, each to go to another class, under the public code's names."""
    found = paired_pictures(folder, pairs, class_names=class_names, labels=labels, limit=limit)
    bad: list[tuple[Path, str]] = []
    digests: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    wanted = list(dict.fromkeys(each.path for each in found))
    for done, path in enumerate(wanted, start=1):
        try:
            picture = read_image(path, limits)
            if rule is not None:
                check_fit(picture, rule)
            digests[path], looks = describe(picture)
            sizes[path] = looks.height, looks.width
        except DdibError as error:
            if not skip_bad:
                if isinstance(error, PictureMisfit):
                    raise name_misfit(error, str(path)) from error
                error.hint = error.hint or "leave bad pictures out with --skip-bad"
                raise
            bad.append((path, error.detail))
        (on_progress or _silent)(done, len(wanted), "looking at files")
    tasks = [
        Task(
            each.path,
            each.path.relative_to(folder).as_posix(),
            source_name(each.source, each.ordinal).removesuffix(".PNG"),
            digests[each.path],
            each.source,
            each.target,
            sizes[each.path],
        )
        for each in found
        if each.path in digests
    ]
    return Found(folder, tuple(tasks), tuple(bad))


def run(
    recipe: Recipe,
    found: Found,
    out: Path,
    *,
    opener: Opener,
    device: str = "cpu",
    batch: int = 16,
    threads: int = 1,
    limits: ImageLimits | None = None,
    thresholds: Thresholds | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Translate the pictures that are not finished, then write sheet and report."""
    require_alone("a translation of pictures")
    require_outside(out, found.folder)
    check_names(found.tasks, recipe)
    settled = _settled(recipe, found, opener, batch)
    _claim(out, settled, force=force)
    started = time.monotonic()
    left = [
        piece
        for piece in batches(found.tasks, batch)
        if not all(finished(task, recipe, settled.digests, out) for task in piece)
    ]
    done = _Progress(len(left) * recipe.legs * recipe.settings.evaluations, on_progress or _silent)
    done.pictures = len(found.tasks) - sum(map(len, left))
    if left:
        work = Translator(
            device, recipe=recipe, out=out, opener=opener, batch=batch, threads=threads, limits=limits
        )
        for piece in left:
            done.pictures += work(piece, done.tick)
    return finish(
        settled,
        found.tasks,
        found.bad,
        out,
        limits=limits,
        thresholds=thresholds,
        seconds=time.monotonic() - started,
        computed=sum(map(len, left)),
    )


def _settled(recipe: Recipe, found: Found, opener: Opener, batch: int) -> Settled:
    """What the run is of; both models are opened once to check that they can do it, and are let go."""
    sides = open_parties(recipe, opener, "cpu", batch)
    if not all(side.model.is_picture for side in sides):
        raise ShapeMismatch("both models must be of pictures", hint="ddib model show tells what one is")
    sigma = 0.0
    for task in {(task.source_class, task.target_class): task for task in found.tasks}.values():
        sigma = check_translation(*sides, asked_of(recipe, task))
    if recipe.uncertainty and sigma == 0.0:
        raise SettingsInvalid(
            "without softening there is no uncertainty to measure", hint="--soften-sigma 0.05"
        )
    source, target = (side.model.manifest for side in sides)
    return Settled(recipe, source, target, tuple(model_digests(*sides)), batch)


class _Progress:
    """Evaluations of all workers as one count, with the number of pictures as a remark."""

    def __init__(self, total: int, show: OnProgress) -> None:
        self.pictures = 0
        self._done, self._total, self._show = 0, total, show

    def tick(self, count: int) -> None:
        self._done += count
        self._show(self._done, self._total, f"{self.pictures} pictures")


def _silent(done: int, total: int, remark: str) -> None:
    del done, total, remark


def _claim(out: Path, settled: Settled, *, force: bool) -> None:
    """Make the folder this run's own, or go on with it."""
    asked = settled.described()
    there = read_json(out / RUN_FILE)
    foreign = there is None and (out / REPORT_FILE).exists()
    if (foreign or (there is not None and there != json.loads(json.dumps(asked)))) and not force:
        raise AlreadyExists(
            f"{out} holds results of another run",
            hint="choose another folder; the same command as before resumes there; --force overwrites",
        )
    out.mkdir(parents=True, exist_ok=True)
    if there != asked:
        (out / REPORT_FILE).unlink(missing_ok=True)
        write_json(out / RUN_FILE, asked)
