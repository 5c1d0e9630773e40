"""Judges a calibration by the figures that can be known without pairs."""

from __future__ import annotations

from typing import Final

from ddib_fed.bridge.calibration.record import Effect
from ddib_fed.errors import CalibrationIneffective

LEAST_MARGIN: Final = 0.045
"""Of the lower bound of the margin, a share of the distance without a calibration: it lies between the bounds of right
and of wrong rotations over draws of the noise."""


def judge(effect: Effect) -> None:
    """Return if a calibration is better than none, and clearly better than the next optimum.

    Raises:
        CalibrationIneffective: It is not; the message has the figures.
    """
    distance, before, margin = effect.distance, effect.distance_before, effect.margin
    hint = "calibrate from anchors, or look at the figures and add --force"
    if distance.high >= before.low:
        raise CalibrationIneffective(
            f"it is not better than none: the distance of the colours is {distance.value:.3g} "
            f"({distance.low:.3g} to {distance.high:.3g}) with it and {before.value:.3g} ({before.low:.3g} to "
            f"{before.high:.3g}) without",
            hint=hint,
        )
    if margin.low < LEAST_MARGIN:
        raise CalibrationIneffective(
            f"another optimum, e.g. the mirrored one, is nearly as good: the margin is {margin.value:.3g} "
            f"({margin.low:.3g} to {margin.high:.3g}), at least {LEAST_MARGIN:g} is needed",
            hint=hint,
        )


def judged(effect: Effect, *, force: bool) -> Effect:
    """The effect of a calibration that is good enough, or that is forced, which the effect then says."""
    try:
        judge(effect)
    except CalibrationIneffective:
        if not force:
            raise
        return effect.model_copy(update={"forced": True})
    return effect
