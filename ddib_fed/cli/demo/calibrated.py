"""The demo's calibrated translations, and what crossed for the calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ddib_fed.bridge.calibration.record import Calibration
from ddib_fed.cli.demo.album import Chosen
from ddib_fed.cli.output import number, size
from ddib_fed.metrics.pictures import Pictures, mse, to_psnr
from ddib_fed.metrics.retrieval import NEAREST, hits_by_pixels


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The figures of calibrated translations; an object of the report."""

    kind: str
    sha256: str
    crossed_bytes: int
    epsilon: float | None
    delta: float | None
    paired_mse: float
    paired_psnr: float
    partner_found: float


@dataclass(frozen=True, slots=True)
class CalibratedPictures:
    """What came of the second translation."""

    calibration: Calibration
    translated: Pictures = field(repr=False)

    def measure(self, chosen: Chosen) -> Calibrated:
        """The figures, beside the truth."""
        made, errors = self.calibration.made, mse(self.translated, chosen.truth)
        return Calibrated(
            kind=self.calibration.kind,
            sha256=self.calibration.sha256.hex(),
            crossed_bytes=made.crossed_bytes,
            epsilon=made.epsilon,
            delta=made.delta,
            paired_mse=float(errors.mean()),
            paired_psnr=float(to_psnr(errors).mean()),
            partner_found=float(np.mean(hits_by_pixels(self.translated, chosen.truth, nearest=NEAREST))),
        )


def what_crossed(calibration: Calibration) -> tuple[str, ...]:
    """What the two institutions gave one another for the calibration, in plain words."""
    made = calibration.made
    source, target = (side.institution.partition(".")[0] for side in (calibration.source, calibration.target))
    numbers = calibration.map.matrix.size
    noise = f"epsilon {number(made.epsilon or 0)}, delta {number(made.delta or 0)}"
    return (
        f"For the calibration {target} sent {source} once {size(made.crossed_bytes)}: one histogram of the colours of",
        f"{made.target_pictures:,} of its pictures, with noise ({noise} for each picture);",
        f"{source} answered with {numbers} numbers, which both signed.",
        "The policies of these two nodes allow a rotation; by default a node allows no calibration.",
    )


def caption(calibration: Calibration) -> str:
    """The same in a sentence, beneath a sheet."""
    made = calibration.made
    return (
        f"Calibrated: a {calibration.kind} of {calibration.map.matrix.size} numbers, found from one histogram of "
        f"{size(made.crossed_bytes)} with noise (epsilon {number(made.epsilon or 0)})."
    )
