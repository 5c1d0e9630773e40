"""The local half of `ddib_fed.translate`: files through two models of this process; imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ddib_fed.api.model import Model, load
from ddib_fed.api.results import Translated, Translations
from ddib_fed.bridge.arrays import Asked, OnProgress, translate_array
from ddib_fed.bridge.calibration.applied import map_between
from ddib_fed.bridge.calibration.files import read_calibration
from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.bridge.local_party import LocalParty
from ddib_fed.bridge.records.translation_record import (
    CycleError,
    LatentFigures,
    Part,
    SolverUsed,
    Translation,
)
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.errors import DdibError, UsageError
from ddib_fed.guidance import Guidance
from ddib_fed.latent import Latent
from ddib_fed.metrics.points import cycle_error
from ddib_fed.runs.outcomes import PictureOutcomes, scene_for
from ddib_fed.samples.images import decode_image, fit_picture
from ddib_fed.samples.points import parse_npy, to_npy

_MAX_BYTES, _MAX_POINTS = 1 << 30, 100_000_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `ddib_fed.translate` was asked for, beside samples and models; its arguments have the meanings.

    Attributes:
        settings: Solver, order, evaluations, grid, depth.
        encoder: How the source encodes.
        classes: Of the source and of the target.
        guidance: Of decoding.
        cycle: Whether to come back.
        keep_latents: Whether results carry latents.
        soften: Noise level.
        seed: Of the softening's noise.
        on_progress: Called with (evaluations done, in all).
        calibration: Under which the source encodes: the object or its file; None for none.
    """

    settings: tuple[str, int, int, str, float]
    encoder: str
    classes: tuple[int | str | None, int | str | None]
    guidance: Guidance
    cycle: bool
    keep_latents: bool
    soften: float | None
    seed: int
    on_progress: OnProgress | None
    calibration: Calibration | str | Path | None = None


def translate_here(
    files: Sequence[bytes], source: Model | str | Path, target: Model | str | Path, wanted: Wanted
) -> Translations:
    there, back = (each if isinstance(each, Model) else load(each) for each in (source, target))
    solver, order, evaluations, grid, depth = wanted.settings
    calibration = _calibration(wanted.calibration)
    manifests = there.party.model.manifest, back.party.model.manifest
    asked = Asked(
        SolverSettings(solver, order, evaluations, grid, depth=depth, encoder=wanted.encoder),
        source_class=_number(wanted.classes[0], "source_class"),
        target_class=_number(wanted.classes[1], "target_class"),
        guidance=wanted.guidance,
        soften=wanted.soften,
        seed=wanted.seed,
        cycle=wanted.cycle,
        calibration=map_between(calibration, *manifests),
    )
    if not there.party.model.is_picture:
        return Translations(_points(files, there.party, back.party, asked, wanted))
    return Translations(_pictures(files, there, back, asked, calibration, wanted))


def _calibration(given: Calibration | str | Path | None) -> Calibration | None:
    return read_calibration(Path(given)) if isinstance(given, str | Path) else given


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Errors name the sample that they are about."""
    try:
        yield
    except DdibError as error:
        error.detail = f"sample {number}: {error.detail}"
        error.facts = {**error.facts, "item": str(number)}
        error.args = (error.detail,)
        raise


def _number(label: int | str | None, name: str) -> int | None:
    if isinstance(label, str):
        raise UsageError(
            f"{name} is a class's name, and a model in this process takes its number", hint=f"{name}=0"
        )
    return label


def _pictures(
    files: Sequence[bytes],
    source: Model,
    target: Model,
    asked: Asked,
    calibration: Calibration | None,
    wanted: Wanted,
) -> list[Translated]:
    """Each at its own size in tiles, or fitted, as `scene_for` says; those of one size together."""
    manifest, is_scene = source.party.model.manifest, source.party.model.bundle.tile is not None
    sizes: dict[tuple[int, int] | None, list[int]] = {}
    for number, content in enumerate(files):
        with _naming(number):
            height, width = decode_image(content).pixels.shape[:2]
        scene = None if is_scene else scene_for(manifest, (height, width), asked.settings)
        sizes.setdefault(scene, []).append(number)
    done: dict[int, Translated] = {}
    for scene, numbers in sizes.items():
        models = (source, target) if scene is None else (source.of_scene(*scene), target.of_scene(*scene))
        done |= _of_one_size({n: files[n] for n in numbers}, models, asked, calibration, wanted)
    return [done[number] for number in range(len(files))]


def _of_one_size(
    files: Mapping[int, bytes],
    models: tuple[Model, Model],
    asked: Asked,
    calibration: Calibration | None,
    wanted: Wanted,
) -> dict[int, Translated]:
    source, target = (model.party for model in models)
    outcomes = PictureOutcomes(source, target, keep_latents=wanted.keep_latents, calibration=calibration)
    fitted = []
    for number, content in files.items():
        with _naming(number):
            each = fit_picture(decode_image(content), outcomes.rules[0])
            fitted.append(replace(each, read=partial(decode_image, content)))
    x = np.stack([each.samples for each in fitted])
    found = translate_array(x, source, target, asked, on_progress=wanted.on_progress)
    records = [
        outcomes.started(each, asked).with_(input_sha256=hashlib.sha256(content).hexdigest())
        for each, content in zip(fitted, files.values(), strict=True)
    ]
    made = outcomes(fitted, found, records)
    return {
        number: Translated(each.files, each.record.judged()) for number, each in zip(files, made, strict=True)
    }


def _points(
    files: Sequence[bytes],
    source: LocalParty,
    target: LocalParty,
    asked: Asked,
    wanted: Wanted,
) -> list[Translated]:
    done = []
    for number, content in enumerate(files):
        with _naming(number):
            points = parse_npy(content, max_bytes=_MAX_BYTES, max_points=_MAX_POINTS)
        found = translate_array(points, source, target, asked, on_progress=wanted.on_progress)
        results: dict[str, bytes] = {Part.TRANSLATION: to_npy(found.translated)}
        record = Translation(
            source_domain=source.model.manifest.domain,
            target_domain=target.model.manifest.domain,
            source_model_sha256=source.model.bundle.digest,
            target_model_sha256=target.model.bundle.digest,
            input_sha256=hashlib.sha256(content).hexdigest(),
            latent_sha256=Latent.from_array(found.latent).sha256.hex(),
            solver=SolverUsed.model_validate(asked.settings.described() | {"depth": asked.settings.depth}),
            soften_sigma=source.model.sigma(asked.soften),
            samples=len(points),
            latent=LatentFigures(**asdict(measure(torch.from_numpy(found.latent)))),
        )
        if found.back is not None:
            results[Part.RETURNED] = to_npy(found.back)
            own = source.model.normalise
            record = record.with_(cycle=CycleError(**cycle_error(own(points), own(found.back))))
        if wanted.keep_latents:
            results[Part.LATENT] = to_npy(found.latent)
        done.append(Translated(results, record))
    return done
