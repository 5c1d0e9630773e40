"""Calibrations that two institutions of a test signed."""

from datetime import UTC, datetime, timedelta
from typing import Any

from ddib_fed.calibration.record import CalibratedSide, SignedCalibration
from ddib_fed.models.units import ChannelMap, Normalisation
from tests.calibration.examples import calibration, signed
from tests.node.institutions import Institution

MIRRORED = ChannelMap(rotation=((-1.0,),))
"""The only rotation of one channel: light and dark are exchanged."""
UNITS = Normalisation(std=0.5)
"""Of the models of `picture_examples`."""


def agreed(north: Institution, south: Institution, **changes: Any) -> SignedCalibration:
    """A mirrored scale of greys from north/scans to south/relief, signed by both; `changes` are fields of it."""
    places = {"source": (north, "scans"), "target": (south, "relief")}
    sides = {
        side: CalibratedSide(institution=owner.name, domain=domain, units=UNITS)
        for side, (owner, domain) in places.items()
    }
    return signed(calibration(**{"map": MIRRORED, **sides, **changes}), north, south)


def ended(held: SignedCalibration) -> SignedCalibration:
    past = held.calibration.model_copy(update={"expires": datetime.now(UTC) - timedelta(days=1)})
    return held.model_copy(update={"calibration": past})
