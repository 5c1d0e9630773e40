"""A calibration survives its file, and asks of two models that they belong to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddib_fed.calibration.record import (
    CalibratedSide,
    leg_map,
    map_between,
    read_calibration,
    units_digest,
    write_calibration,
)
from ddib_fed.errors import (
    CalibrationForeign,
    CalibrationInvalid,
    CalibrationModel,
    CalibrationUnits,
    FileMissing,
)
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.units import ChannelMap, Normalisation
from tests.calibration.examples import calibration
from tests.runs.tiny_models import tiny

AGREED = calibration()


def test_the_digest_is_the_same_after_a_file(tmp_path: Path) -> None:
    """The file is for people; the digest is of the canonical form."""
    write_calibration(AGREED, tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json").sha256 == AGREED.sha256
    signed = {"calibration": AGREED.model_dump(mode="json"), "source": {"signature": "x"}}
    (tmp_path / "signed.json").write_text(json.dumps(signed))
    assert read_calibration(tmp_path / "signed.json") == AGREED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "is no calibration"),
        ('{"kind": "rotation"}', "source: Field required"),
        (json.dumps(AGREED.model_dump(mode="json") | {"more": 1}), "more: Extra"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """The message names the file and the first field that is wrong."""
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(CalibrationInvalid, match=said) as told:
        read_calibration(tmp_path / "c.json")
    assert "c.json" in told.value.detail
    with pytest.raises(FileMissing):
        read_calibration(tmp_path / "none.json")


def test_a_shipped_models_calibration_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its map is the one that the model's units have; a file of that name here comes first."""
    shipped = read_calibration(Path("satellite-as-relief"))
    assert shipped.map == pretrained("satellite-as-relief").manifest.normalisation.calibrated
    assert (shipped.source.domain, shipped.target.domain) == ("satellite", "relief")
    assert shipped.made.epsilon == 1.0
    monkeypatch.chdir(tmp_path)
    write_calibration(AGREED, Path("satellite-as-relief"))
    assert read_calibration(Path("satellite-as-relief")) == AGREED
    with pytest.raises(FileMissing):
        read_calibration(Path("satellite"))


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
