"""What a calibration asks of the source's leg, and what it asks of the source's model."""

from __future__ import annotations

from ddib_fed.bridge.calibration.record import RETRAINED, CalibratedSide, Calibration, units_digest
from ddib_fed.errors import CalibrationForeign, CalibrationModel, CalibrationUnits
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units.channel_map import ChannelMap


def leg_map(calibration: Calibration | None, source: Manifest) -> ChannelMap | None:
    """The map for `Leg.calibration`: that of a rotation; None where the model's own units have it, or there is none.

    Args:
        calibration: Of the translation; None for none.
        source: Of the model that encodes.

    Raises:
        CalibrationModel: The model must be trained with the calibration and is not, or it is trained with another map
            than the translation's.
    """
    held = source.normalisation.calibrated
    if calibration is not None and calibration.kind in RETRAINED:
        if held != calibration.map:
            raise _untrained(calibration, source, other=held is not None)
        return rotation_of(calibration)
    if held is not None:
        raise _refused(
            source,
            f"{source.name} was trained with the map of a calibration, and this translation has "
            + ("none" if calibration is None else f"a {calibration.kind}"),
            "ddib calibrate list shows a node's calibrations, --calibration FILE names one in one process; or use the "
            "model from before that training",
        )
    return rotation_of(calibration)


def fits(calibration: Calibration, source: Manifest) -> bool:
    """Whether a model can encode under a calibration as it is trained now; `leg_map` says why not."""
    try:
        leg_map(calibration, source)
    except CalibrationModel:
        return False
    return True


def map_between(calibration: Calibration | None, source: Manifest, target: Manifest) -> ChannelMap | None:
    """As `leg_map`, for two models in one process: the calibration must be between their domains and in their units.

    Raises:
        CalibrationForeign: It is between other domains.
        CalibrationUnits: It was made for models of other units.
        CalibrationModel: As `leg_map` and `check_target` say.
    """
    if calibration is not None:
        check_models(calibration, source, target)
        check_target(target)
    return leg_map(calibration, source)


def check_target(target: Manifest) -> None:
    """Return if a model can decode what was encoded under a calibration: the map leads to its plain units.

    Raises:
        CalibrationModel: Its own units are mapped.
    """
    if target.normalisation.calibrated is not None:
        raise _refused(
            target,
            f"{target.name} was trained with the map of a calibration, and latents under another one lead to its units "
            "without that map",
            "decode by the model from before that training; ddib model show MODEL lists the map",
        )


def rotation_of(calibration: Calibration | None) -> ChannelMap | None:
    """The map that `leg_map` gave when it checked the models; None for none."""
    return None if calibration is None or calibration.kind in RETRAINED else calibration.map


def check_models(calibration: Calibration, source: Manifest, target: Manifest) -> None:
    """Return if a calibration is between two models' domains, and in their units without a calibration.

    Raises:
        CalibrationForeign: It is between other domains.
        CalibrationUnits: It was made for models of other units.
    """
    found = calibration.source.domain, calibration.target.domain
    if found != (source.domain, target.domain):
        raise CalibrationForeign(
            f"the calibration leads from {found[0]} to {found[1]}, not from {source.domain} to {target.domain}",
            hint=f"ddib calibrate --local {source.domain} {target.domain}",
            facts={"source": found[0], "target": found[1]},
        )
    for side, manifest in ((calibration.source, source), (calibration.target, target)):
        _check_units(side, manifest)


def _check_units(side: CalibratedSide, manifest: Manifest) -> None:
    units = units_digest(manifest.normalisation)
    if side.units_sha256 != units:
        raise CalibrationUnits(
            f"the calibration was made for a model of {side.domain} with the units {side.units_sha256[:12]}; "
            f"{manifest.name} has {units[:12]}",
            hint="calibrate again with this model: ddib calibrate --local A B",
            facts={"model": manifest.name},
        )


def _untrained(calibration: Calibration, source: Manifest, *, other: bool) -> CalibrationModel:
    why = "was trained with the map of another one" if other else "was not trained with it"
    return _refused(
        source,
        f"the {calibration.kind} {calibration.sha256.hex()[:12]} needs a source model trained with it, and "
        f"{source.name} {why}",
        "ddib model train --init OWN --calibration FILE --out NEW, then serve NEW",
    )


def _refused(model: Manifest, detail: str, remedy: str) -> CalibrationModel:
    return CalibrationModel(detail, hint=remedy, facts={"model": model.name, "remedy": remedy})
