"""What a calibration asks of the two models of a translation in one process."""

from __future__ import annotations

import pytest

from ddib_fed.calibration.record import CalibratedSide, leg_map, map_between, units_digest
from ddib_fed.errors import CalibrationForeign, CalibrationModel, CalibrationUnits
from ddib_fed.models.units import ChannelMap, Normalisation
from tests.calibration.examples import calibration
from tests.runs.tiny_models import tiny

PLAIN = Normalisation()
TURN = ((0, 1, 0), (1, 0, 0), (0, 0, 1))
CURVE = ChannelMap(quadratic=((0.0, 1.0, 0.1),))


def side(domain, units=PLAIN):
    return CalibratedSide(domain=domain, units_sha256=units_digest(units))


def between(source="north", target="south", **changes):
    return calibration(source=side(source), target=side(target), **changes)


TONE = between(kind="tone", map=CURVE)
NORTH, SOUTH = (tiny(name, channels=3).manifest for name in ("north", "south"))
GREY = tiny("north").manifest
TRAINED = tiny("north", normalisation=Normalisation(calibrated=CURVE)).manifest


def test_a_rotation_is_the_legs_and_any_other_map_the_models():
    rotation = between()
    assert map_between(rotation, NORTH, SOUTH) == rotation.map
    assert map_between(TONE, TRAINED, SOUTH) is None
    assert leg_map(None, NORTH) is None


@pytest.mark.parametrize(
    ("given", "source", "says", "command"),
    [
        (TONE, GREY, "was not trained with it", "ddib model train --init OWN --calibration FILE"),
        (
            TONE,
            tiny("north", normalisation=Normalisation(calibrated=ChannelMap(rotation=((-1.0,),)))).manifest,
            "was trained with the map of another one",
            "ddib model train",
        ),
        (None, TRAINED, "this translation has none", "ddib calibrate list"),
        (between(map=ChannelMap(rotation=((-1.0,),))), TRAINED, "has a rotation", "--calibration FILE"),
    ],
)
def test_a_model_and_a_calibration_that_do_not_belong_together_are_refused(given, source, says, command):
    """In both directions, with what to do."""
    with pytest.raises(CalibrationModel, match=says) as refused:
        leg_map(given, source)
    assert command in refused.value.hint


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (between(target="east"), CalibrationForeign),
        (between("south", "north"), CalibrationForeign),
        (
            calibration(source=side("north"), target=side("south", Normalisation(std=0.5))),
            CalibrationUnits,
        ),
    ],
)
def test_a_calibration_of_other_domains_or_units_is_refused(given, error):
    """Also the one of the way back."""
    with pytest.raises(error) as refused:
        map_between(given, NORTH, SOUTH)
    assert "ddib calibrate --local" in refused.value.hint


def test_a_target_of_mapped_units_is_refused():
    """The calibration leads to the units that its model had before."""
    mapped = tiny(
        "south", channels=3, normalisation=Normalisation(calibrated=ChannelMap(rotation=TURN))
    ).manifest
    with pytest.raises(CalibrationModel, match="south was trained"):
        map_between(between(), NORTH, mapped)
    assert map_between(None, NORTH, mapped) is None
