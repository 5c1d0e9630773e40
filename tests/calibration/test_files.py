"""A calibration survives its file, with or without signatures beside it; what is none is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ddib_fed.calibration.record import (
    CalibratedSide,
    Calibration,
    Effect,
    Making,
    read_calibration,
    write_calibration,
)
from ddib_fed.errors import AlreadyExists, CalibrationInvalid, FileMissing
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap

THIRD = 1.0 / 3.0


def calibration() -> Calibration:
    """A swap of two channels."""
    figure = Figure(value=THIRD, low=0.25, high=0.5)
    made = datetime(2026, 11, 25, tzinfo=UTC)
    return Calibration(
        kind="rotation",
        source=CalibratedSide(domain="a", units_sha256="0" * 64),
        target=CalibratedSide(domain="b", units_sha256="1" * 64),
        map=ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1))),
        made=Making(method="anchors", anchors=4, created=made),
        effect=Effect(distance_before=figure, distance=figure, margin=figure),
        expires=made.replace(year=2027),
    )


def test_the_digest_is_the_same_after_a_file(tmp_path: Path) -> None:
    """The file is for people; the digest is of the canonical form."""
    write_calibration(calibration(), tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json").sha256 == calibration().sha256
    signed = {"calibration": calibration().model_dump(mode="json"), "source": {"signature": "x"}}
    (tmp_path / "signed.json").write_text(json.dumps(signed))
    assert read_calibration(tmp_path / "signed.json") == calibration()


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    """A calibration may be the only copy of what two institutions agreed on."""
    (tmp_path / "c.json").write_text("kept")
    with pytest.raises(AlreadyExists):
        write_calibration(calibration(), tmp_path / "c.json")
    assert (tmp_path / "c.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "is no calibration"),
        ('{"kind": "rotation"}', "source: Field required"),
        (json.dumps(calibration().model_dump(mode="json") | {"more": 1}), "more: Extra"),
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
    write_calibration(calibration(), Path("satellite-as-relief"))
    assert read_calibration(Path("satellite-as-relief")) == calibration()
    with pytest.raises(FileMissing):
        read_calibration(Path("satellite"))
