"""What `ddib domains` says of a target's calibration, and `ddib translate` of the one that was used."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.cli.delivery import Delivered
from ddib_fed.cli.folder_report import _calibrated
from ddib_fed.cli.job import calibration
from ddib_fed.engine.record import Translation
from ddib_fed.protocol.contract import CalibrationTerms


def test_a_calibration_is_listed_by_its_kind_and_last_day():
    assert calibration(CalibrationTerms(bytes(32), "tone", 1_798_761_600)) == "tone until 2027-01-01"
    assert calibration(None) == "-"


def test_results_name_the_calibration_that_they_were_made_under():
    """Once, however many there are; nothing without one."""
    named = Translation(calibration_sha256="ab" * 32, calibration_kind="rotation")
    made = [Delivered(number, f"{number}.png", {}, Path("r.json"), named) for number in range(3)]
    assert _calibrated(made) == "calibration: rotation abababababab"
    assert _calibrated([Delivered(0, "0.png", {}, Path("r.json"), Translation())]) == ""
