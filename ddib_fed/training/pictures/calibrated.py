"""The units of a run with a calibration: those of the initial model, with the calibration's map behind them."""

from __future__ import annotations

import hashlib
import shlex

from ddib_fed.bridge.calibration.files import read_calibration
from ddib_fed.bridge.calibration.record import RETRAINED, Calibration, units_digest
from ddib_fed.errors import CalibrationExpired, CalibrationForeign, CalibrationUnits, SettingsInvalid
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.training.config import TrainConfig


def calibrated_units(config: TrainConfig, made: Manifest) -> Normalisation:
    """From pictures in [-1, 1] to the units of the model that they are translated to."""
    found = read_calibration(config.calibration) if config.calibration is not None else None
    if found is None:
        raise SettingsInvalid("the run has no calibration", hint="name its file")
    if found.kind not in RETRAINED:
        raise SettingsInvalid(
            f"{config.calibration} is a {found.kind}, for which no model is trained: the one there is works with it",
            hint=f"ddib translate --source A --target B --calibration {shlex.quote(str(config.calibration))}",
        )
    if found.expired():
        raise CalibrationExpired(
            f"{config.calibration} ended on {found.expires:%Y-%m-%d}", hint="make it anew: ddib calibrate"
        )
    _check_domain(config, made, found)
    if found.source.units_sha256 != units_digest(made.normalisation):
        whose = "the target's" if found.target.units_sha256 == units_digest(made.normalisation) else "other"
        raise CalibrationUnits(
            f"{config.calibration} maps from units that {config.init} does not have: those are {whose}",
            hint="--init with the model that the calibration was made with, on the side that it maps from",
        )
    if config.colours not in ("rgb", made.normalisation.colours):
        raise SettingsInvalid(
            f"colours is {made.normalisation.colours} in the initial weights, not {config.colours}",
            hint="leave colours out",
        )
    return made.normalisation.model_copy(update={"calibrated": found.map})


def map_digest(found: ChannelMap) -> str:
    return hashlib.sha256(found.model_dump_json(exclude_none=True).encode()).hexdigest()


def _check_domain(config: TrainConfig, made: Manifest, found: Calibration) -> None:
    own = {name for name in (made.domain, made.name, config.name, config.domain) if name is not None}
    if found.source.domain not in own:
        raise CalibrationForeign(
            f"{config.calibration} maps pictures of {found.source.domain}, and {config.init} is of {made.domain}",
            hint=f"--init with the model of {found.source.domain}",
        )
