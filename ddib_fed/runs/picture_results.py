"""Reads the results of a run over pictures, at the model's size, for sheets and figures.

What is shown is what is in the files, not what was in memory when they were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ddib_fed.bridge.records.translation_record import Part, Translation
from ddib_fed.metrics.pictures import Pictures, picture_rule
from ddib_fed.models.manifest import Manifest
from ddib_fed.reports.sheets import Stage, save_sheet
from ddib_fed.runs.picture_recipe import SHEET_FILE, Task
from ddib_fed.samples.images import ImageLimits, PictureRule, read_image, to_array


def stages(
    tasks: Sequence[Task],
    records: Sequence[Translation],
    out: Path,
    models: tuple[Manifest, Manifest],
    limits: ImageLimits | None = None,
) -> list[Stage]:
    """Source, translated and, for a cycle, back; each (N, C, H, W) in [-1, 1]."""
    own = picture_rule(models[0])
    # In the files the source's fit is undone, on whatever side they are.
    theirs = replace(picture_rule(models[1]), fit=own.fit)
    found = [Stage("source", _stack([task.path for task in tasks], own, limits))]
    for title, part, rule in (("translated", Part.TRANSLATION, theirs), ("back", Part.RETURNED, own)):
        if part in records[0].files:
            paths = [path_of(out, task, record, part) for task, record in zip(tasks, records, strict=True)]
            found.append(Stage(title, _stack(paths, in_numbers(rule))))
    return found


def path_of(out: Path, task: Task, record: Translation, part: str) -> Path:
    return (out / task.name).parent / record.files[part].file


def in_numbers(rule: PictureRule) -> PictureRule:
    return rule if rule.output_scale == (1.0, 0.0) else replace(rule, low=0.0, high=float(rule.top))


def write_sheet(
    tasks: Sequence[Task],
    records: Sequence[Translation],
    out: Path,
    models: tuple[Manifest, Manifest],
    limits: ImageLimits | None = None,
    *,
    total: int,
) -> None:
    """Draw the contact sheet of a run of `total` pictures; doubtful pictures are framed."""
    shown = f"{len(tasks)} of {total} pictures" if len(tasks) < total else f"{total} pictures"
    caption = f"{models[0].domain} to {models[1].domain}, {shown}" + (
        ", the worst first" if total > 1 else ""
    )
    notes = [model.data.note or model.data.source for model in models if model.data is not None]
    save_sheet(
        out / SHEET_FILE,
        stages(tasks, records, out, models, limits),
        names=[Path(record.files[Part.TRANSLATION].file).stem for record in records],
        doubtful=[bool(record.doubtful) for record in records],
        caption=". ".join([caption, *dict.fromkeys(filter(None, notes))]),
    )


def _stack(paths: Sequence[Path], rule: PictureRule, limits: ImageLimits | None = None) -> Pictures:
    # Of different fits and sizes all come to the model's own size.
    return np.stack([to_array(read_image(path, limits), rule)[0] for path in paths])
