"""Files and record of each translated picture of a batch; runs write them, the Python API returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ddib_fed.bridge.arrays import Asked, Stages
from ddib_fed.bridge.calibration.applied import rotation_of
from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.bridge.local_party import LocalParty
from ddib_fed.bridge.records.translation_record import (
    KEPT_SMALL,
    MOST_TILES,
    LatentFigures,
    Part,
    PictureFigures,
    SolverUsed,
    Translation,
    guidance_used,
    tiles_in,
)
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.latent import Latent
from ddib_fed.metrics.pictures import (
    given_figures,
    mse,
    output_terms,
    own_size_error,
    picture_rule,
    to_psnr,
)
from ddib_fed.metrics.structure import Structure, doubtful, expected, structure
from ddib_fed.models.manifest import Manifest
from ddib_fed.samples.images import Fitted, encode_png, from_array
from ddib_fed.samples.points import to_npy


def scene_for(manifest: Manifest, size: tuple[int, int], settings: SolverSettings) -> tuple[int, int] | None:
    """The scene as which a picture of a size (H, W) is translated; None for one that is fitted to the model's size."""
    one_size = settings.solver == "flow-map" or settings.grid == "learned"
    if manifest.picture is None or not manifest.picture.tiles or one_size:
        return None
    _, height, width = manifest.sample_shape
    return size if 0 < tiles_in(*size, (height, width)) <= MOST_TILES else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture."""

    files: dict[str, bytes]
    record: Translation
    chance: dict[str, float] | None


class PictureOutcomes:
    """Makes files and records of pictures that two parties translated."""

    def __init__(
        self,
        source: LocalParty,
        target: LocalParty,
        *,
        own_size: bool = True,
        keep_latents: bool = False,
        keep_source: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        self._source, self._target = source, target
        self._manifests = source.model.manifest, target.model.manifest
        self.rules = picture_rule(self._manifests[0]), picture_rule(self._manifests[1])
        # The fit that was done to the source is what is undone, whatever the target does to its own pictures.
        self.output_rule = replace(self.rules[1], fit=self.rules[0].fit)
        self._calibration = calibration
        self._expected = expected(self._manifests[0], rotation_of(calibration))
        self._own_size, self._keep_latents, self._keep_source = own_size, keep_latents, keep_source

    def __call__(
        self, given: Sequence[Fitted], found: Stages, records: Sequence[Translation]
    ) -> list[Outcome]:
        x = np.stack([each.original for each in given])
        kept = structure(x, found.translated, self._expected)
        errors = mse(found.back, x) if found.back is not None else None
        least = self._manifests[0].structure
        marks = None if least is None else doubtful(kept, least).tolist()
        neighbours = structure(x, np.roll(found.translated, 1, axis=0)) if len(x) > 1 else None
        outcomes = []
        for row, (fitted, record) in enumerate(zip(given, records, strict=True)):
            figures: dict[str, Any] = dict(_figures(kept, row))
            if kept.agreement is not None:
                figures["agreement"] = float(kept.agreement[row])
            if errors is not None:
                figures |= {"cycle_mse": float(errors[row]), "cycle_psnr": float(to_psnr(errors)[row])}
            if found.back is not None and self._own_size and record.picture and record.picture.fitted_height:
                figures |= own_size_error(found.back[row], self.rules[0], fitted.read())
            if marks is not None and least is not None:
                figures |= {
                    "least_edge_correlation": least.edge_correlation,
                    "least_mutual_information": least.mutual_information,
                    "least_agreement": None if kept.agreement is None else least.agreement,
                    "structure_doubtful": marks[row],
                }
            latent = found.latent[row : row + 1]
            ended = record.with_(
                latent_sha256=Latent.from_array(latent).sha256.hex(),
                latent=LatentFigures(**asdict(measure(torch.from_numpy(latent)))),
                picture=figures,
            )
            chance = None if neighbours is None else _figures(neighbours, row)
            outcomes.append(Outcome(self._files(row, fitted, found), ended, chance))
        return outcomes

    def started(self, given: Fitted, asked: Asked, *, name: str = "") -> Translation:
        """What is known of one picture before it is translated; `name` is the file's."""
        rule = self.rules[1]
        guide = None if asked.guidance.classifier_scale is None else self._target.model.classifier
        return Translation(
            input=name,
            source_domain=self._manifests[0].domain,
            target_domain=self._manifests[1].domain,
            source_model_sha256=self._source.model.bundle.digest,
            target_model_sha256=self._target.model.bundle.digest,
            solver=SolverUsed.model_validate(asked.settings.described() | {"depth": asked.settings.depth}),
            soften_sigma=self._source.model.sigma(asked.soften),
            source_class="" if asked.source_class is None else str(asked.source_class),
            target_class="" if asked.target_class is None else str(asked.target_class),
            guidance=guidance_used(asked.guidance),
            classifier_sha256="" if guide is None else guide.digest,
            calibration_sha256="" if self._calibration is None else self._calibration.sha256.hex(),
            calibration_kind="" if self._calibration is None else self._calibration.kind,
            picture=self._given(given).model_copy(update=output_terms(rule)),
        )

    def _given(self, given: Fitted) -> PictureFigures:
        figures = given_figures(given, self.rules[0], self.rules[0].fit)
        return figures if self._own_size else figures.model_copy(update=KEPT_SMALL)

    def _files(self, row: int, given: Fitted, found: Stages) -> dict[str, bytes]:
        size = given.geometry if self._own_size else None
        files: dict[str, bytes] = {
            Part.TRANSLATION: encode_png(from_array(found.translated[row], self.output_rule, size))
        }
        if self._keep_source:
            files[Part.SOURCE] = encode_png(from_array(given.samples, self.rules[0]))
        if found.back is not None:
            files[Part.RETURNED] = encode_png(from_array(found.back[row], self.rules[0], size))
        if self._keep_latents:
            files[Part.LATENT] = to_npy(found.latent[row : row + 1])
        return files


def _figures(kept: Structure, row: int) -> dict[str, float]:
    return {
        "edge_correlation": float(kept.edge_correlation[row]),
        "mutual_information": float(kept.mutual_information[row]),
    }
