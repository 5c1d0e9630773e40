"""Translates batches of picture files with models that it opened once, and writes what came of each beside a record.

A record is written last, with the digests of the files that it speaks of; a picture is finished when its
record answers the request and every file is as the record says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.bridge.arrays import Asked, Stages, translate_array, uncertainty
from ddib_fed.bridge.calibration.applied import map_between, rotation_of
from ddib_fed.bridge.local_party import LocalParty, open_party
from ddib_fed.bridge.model.domain_model import Array
from ddib_fed.bridge.records.translation_record import (
    UNCERTAINTY,
    FolderRun,
    Refusal,
    Translation,
    WrittenFile,
)
from ddib_fed.errors import DdibError, MemoryExhausted
from ddib_fed.files import write_file
from ddib_fed.models.bundle import Bundle
from ddib_fed.runs.outcomes import PictureOutcomes
from ddib_fed.runs.picture_recipe import RECORD, Recipe, Task
from ddib_fed.samples.images import (
    Fitted,
    Geometry,
    ImageLimits,
    PictureRule,
    encode_png,
    from_array,
    read_fitted,
)

# A deviation of this much, in units of [-1, 1], is white on the map.
UNCERTAINTY_WHITE = 0.5
OnTick = Callable[[int], None]
Opener = Callable[[str], Bundle]


class Translator:
    """Does batches of one recipe on one device."""

    def __init__(
        self,
        device: str,
        *,
        recipe: Recipe,
        out: Path,
        opener: Opener,
        batch: int = 16,
        threads: int = 1,
        limits: ImageLimits | None = None,
    ) -> None:
        self._recipe, self._out, self._limits = recipe, out, limits
        self.source, self.target = open_parties(recipe, opener, device, batch, threads)
        self._outcomes = PictureOutcomes(
            self.source,
            self.target,
            own_size=not recipe.public_names,
            keep_latents=recipe.keep_latents,
            keep_source=recipe.public_names,
            calibration=recipe.calibration,
        )

    def __call__(self, batch: Sequence[Task], on_tick: OnTick) -> int:
        given = [read_fitted(task.path, self._outcomes.rules[0], self._limits) for task in batch]
        x = np.stack([each.samples for each in given])
        try:
            found, deviation = self._compute(x, batch[0], on_tick)
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryExhausted(
                f"the GPU's memory does not suffice for {len(batch)} pictures at once",
                hint=f"--batch {max(1, len(batch) // 2)}, or --dtype bfloat16",
            ) from error
        rows = found.rows
        if rows:
            self._write([batch[row] for row in rows], [given[row] for row in rows], found, deviation)
        for row, why in found.failed.items():
            self._refuse(batch[row], given[row], why)
        return len(batch)

    def _compute(self, x: Array, first: Task, on_tick: OnTick) -> tuple[Stages, Array | None]:
        """What became of the batch, and the deviation over softenings of those pictures that were not refused."""
        asked = asked_of(self._recipe, first)

        def tick(done: int, total: int) -> None:
            del done, total
            on_tick(1)

        found = translate_array(x, self.source, self.target, asked, on_progress=tick, refuse=False)
        if not self._recipe.uncertainty or not found.rows:
            return found, None
        kept, times = x[list(found.rows)], self._recipe.uncertainty
        return found, uncertainty(kept, self.source, self.target, asked, times=times, on_progress=tick)

    def _write(
        self, batch: Sequence[Task], given: Sequence[Fitted], found: Stages, deviation: Array | None
    ) -> None:
        """Write files and record of each picture, the record last."""
        records = [self._started(task, fitted) for task, fitted in zip(batch, given, strict=True)]
        for row, outcome in enumerate(self._outcomes(given, found, records)):
            task, files = batch[row], dict(outcome.files)
            spread = None if deviation is None else deviation[row]
            if spread is not None:
                size = None if self._recipe.public_names else given[row].geometry
                files[UNCERTAINTY] = _map(spread, self._outcomes.output_rule, size)
            record = outcome.record.with_(
                files=self._put(task, files), run=self._run(task, outcome.chance, spread)
            )
            write_file(self._out / task.files(self._recipe)[RECORD], record.judged().to_json())

    def _started(self, task: Task, given: Fitted) -> Translation:
        return self._outcomes.started(given, asked_of(self._recipe, task), name=task.shown)

    def _refuse(self, task: Task, given: Fitted, error: DdibError) -> None:
        refusal = Refusal(reason=error.reason, detail=error.detail, facts=dict(error.facts))
        run = self._run(task, None, None).model_copy(update={"refused": refusal})
        record = self._started(task, given).with_(run=run)
        path = self._out / task.files(self._recipe)[RECORD]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, record.to_json())

    def _put(self, task: Task, files: Mapping[str, bytes]) -> dict[str, WrittenFile]:
        """Write the files of one picture, named relative to their record's folder."""
        names, written = task.files(self._recipe), dict[str, WrittenFile]()
        for kind, content in files.items():
            path = self._out / names[kind]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
            written[str(kind)] = WrittenFile(file=path.name, sha256=hashlib.sha256(content).hexdigest())
        return written

    def _run(self, task: Task, chance: dict[str, float] | None, deviation: Array | None) -> FolderRun:
        spread = None
        if deviation is not None:
            spread = {
                "softenings": self._recipe.uncertainty,
                "mean": float(deviation.mean()),
                "max": float(deviation.max()),
                "white": UNCERTAINTY_WHITE,
            }
        return FolderRun(
            request=task.request(self._recipe, model_digests(self.source, self.target)),
            pixels_sha256=task.digest,
            settings=self._recipe.described(),
            chance=chance,
            uncertainty=spread,
        )


def open_parties(
    recipe: Recipe, opener: Opener, device: str, batch: int, threads: int = 1
) -> tuple[LocalParty, LocalParty]:
    """The two parties of a recipe on a device; one when both are one model."""

    def opened(name: str) -> Bundle:
        bundle = opener(name)
        return bundle if recipe.scene is None else bundle.of_scenes(*recipe.scene)

    classifier = opener(recipe.classifier) if recipe.classifier is not None else None
    shared: dict[str, Any] = {"classifier": classifier, "together": batch, "threads": threads}
    source = target = open_party(opened(recipe.source), device, recipe.dtype, **shared)
    if recipe.target != recipe.source:
        target = open_party(opened(recipe.target), device, recipe.dtype, **shared)
    map_between(recipe.calibration, source.model.manifest, target.model.manifest)
    return source, target


def asked_of(recipe: Recipe, task: Task) -> Asked:
    """What a recipe asks for a picture of these classes."""
    return Asked(
        replace(recipe.settings, depth=recipe.depth),
        source_class=task.source_class,
        target_class=task.target_class,
        guidance=recipe.guides,
        soften=recipe.soften,
        seed=recipe.seed,
        cycle=recipe.cycle,
        calibration=rotation_of(recipe.calibration),
    )


def model_digests(source: LocalParty, target: LocalParty) -> list[str]:
    guide = source.model.classifier
    return [source.model.bundle.digest, target.model.bundle.digest, "" if guide is None else guide.digest]


def finished(task: Task, recipe: Recipe, models: Sequence[str], out: Path) -> bool:
    """Whether the results of a picture are there, answer this request and are what their record says."""
    path = out / task.files(recipe)[RECORD]
    record = Translation.read(path)
    if record is None or record.run is None or record.run.request != task.request(recipe, models):
        return False
    if record.run.refused is not None:
        return True
    if {RECORD, *record.files} != set(task.files(recipe)):
        return False
    return all(_digest(path.parent / each.file) == each.sha256 for each in record.files.values())


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _map(deviation: Array, rule: PictureRule, geometry: Geometry | None) -> bytes:
    grey = replace(rule, channels=1, low=0.0, high=UNCERTAINTY_WHITE, bits=16)
    return encode_png(from_array((deviation / UNCERTAINTY_WHITE * 2.0 - 1.0)[None], grey, geometry))
