"""A run with a calibration has its initial model's units with the map behind them, and refuses another model's."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from ddib_fed.calibration.record import (
    CalibratedSide,
    Calibration,
    Effect,
    Making,
    units_digest,
    write_calibration,
)
from ddib_fed.errors import (
    CalibrationExpired,
    CalibrationForeign,
    CalibrationUnits,
    SettingsInvalid,
    StateConflict,
)
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.networks.config import UNetConfig
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from ddib_fed.training.sources import calibrated_units
from tests.networks.picture_networks import manifest
from tests.training.pictures.examples import spots_source
from tests.training.pictures.runs.test_run import stop_at

FLIP = ChannelMap(curve=((-3.0, 2.0), (6.0, -2.5)))
UNITS = Normalisation(mean=-0.7, std=0.4)
SWAP = ChannelMap(rotation=((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


def tone(units=UNITS, **changed):
    """From spots to dots."""
    figure = Figure(value=1.0, low=1.0, high=1.0)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    fields = {
        "kind": "tone",
        "source": CalibratedSide(domain="spots", units_sha256=units_digest(units)),
        "target": CalibratedSide(domain="dots", units_sha256="1" * 64),
        "map": FLIP,
        "made": Making(method="anchors", created=now),
        "effect": Effect(distance_before=figure, distance=figure, margin=figure),
        "expires": datetime(9999, 1, 1, tzinfo=UTC),
    }
    return Calibration.model_validate(fields | changed)


def asked(tmp_path, calibration, **fields):
    write_calibration(calibration, tmp_path / "c.json")
    return TrainConfig(kind="pictures", init=tmp_path / "own", calibration=tmp_path / "c.json", **fields)


@pytest.fixture
def made():
    """The manifest of a grey model of spots."""
    network = UNetConfig(
        image_size=8, in_channels=1, model_channels=32, out_channels=1, num_res_blocks=1,
        attention_resolutions=(), channel_mult=(1,),
    )  # fmt: skip
    return manifest(network, domain="spots", normalisation=UNITS)


def test_the_units_are_those_of_the_model_with_the_map(made, tmp_path):
    """A map that it has already is replaced."""
    config = asked(tmp_path, tone())
    found = calibrated_units(config, made)
    assert found == UNITS.model_copy(update={"calibrated": FLIP})
    again = made.model_copy(update={"normalisation": found})
    assert calibrated_units(config, again) == found


@pytest.mark.parametrize(
    ("calibration", "error", "says"),
    [
        (tone(kind="rotation", map=SWAP), SettingsInvalid, "no model is trained"),
        (tone(expires=datetime(2026, 2, 1, tzinfo=UTC)), CalibrationExpired, "2026-02-01"),
        (tone(Normalisation(mean=0.1)), CalibrationUnits, "does not have"),
        (
            tone(
                Normalisation(mean=0.1),
                target=CalibratedSide(domain="dots", units_sha256=units_digest(UNITS)),
            ),
            CalibrationUnits,
            "the target's",
        ),
        (
            tone(source=CalibratedSide(domain="rings", units_sha256=units_digest(UNITS))),
            CalibrationForeign,
            "rings",
        ),
    ],
)
def test_a_calibration_that_is_not_the_runs_is_refused(made, tmp_path, calibration, error, says):
    """Each with its reason and a next step."""
    with pytest.raises(error, match=says) as refused:
        calibrated_units(asked(tmp_path, calibration), made)
    assert refused.value.hint


@pytest.mark.slow
def test_a_calibrated_run_goes_on_where_it_was_stopped_and_not_with_another_map(tiny, tmp_path):
    """Its spectrum is that of mapped pictures; softening and domain stay those of the initial model."""
    source = replace(spots_source(1), labels=None, classes=())
    renamed = replace(source, name="a-folder")
    network = {**tiny.network, "patch": 2, "spectral": True}
    first = tiny.model_copy(update={"network": network, "steps": 2, "soften_sigma": 0.07})
    own = train(first, tmp_path / "own", source=source).manifest
    write_calibration(tone(own.normalisation), tmp_path / "c.json")
    config = TrainConfig(
        kind="pictures",
        init=tmp_path / "own",
        calibration=tmp_path / "c.json",
        batch=8,
        steps=4,
        samples=1,
        dtype="float32",
    )
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "made", stop_at(2), source=renamed)
    train(config, tmp_path / "made", source=renamed, resume=True)
    made, plain = load_bundle(tmp_path / "made"), load_bundle(tmp_path / "own")
    assert made.manifest.normalisation == own.normalisation.model_copy(update={"calibrated": FLIP})
    assert made.manifest.soften_sigma == 0.07
    assert made.manifest.domain == own.domain
    assert made.manifest.structure != plain.manifest.structure
    means = [float(bundle.state["spectrum.mean"].mean()) for bundle in (plain, made)]
    assert np.sign(means[0]) != np.sign(means[1]) or abs(means[0] - means[1]) > 0.1
    other = tone(own.normalisation, map=ChannelMap(curve=((-3.0, 2.1), (6.0, -2.5))))
    write_calibration(other, tmp_path / "other.json")
    changed = config.model_copy(update={"calibration": tmp_path / "other.json"})
    with pytest.raises(StateConflict):
        train(changed, tmp_path / "made", source=source, resume=True)
