"""`ddib calibrate --evaluate`: figures with and without, a refusal for what does not help, and clear errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.calibration.record import (
    CalibratedSide,
    Calibration,
    Effect,
    Making,
    units_digest,
    write_calibration,
)
from ddib_fed.cli.main import cli
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import CalibrationForeign, CalibrationIneffective, UsageError
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap
from tests.runs.tiny_models import pictures, tiny

SWAP = ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1)))
UNITS = units_digest(tiny(channels=3).manifest.normalisation)


def calibration(margin: float = 0.5) -> Calibration:
    """From north to south; its figures are accepted if the margin is large."""
    made = datetime(2026, 11, 25, tzinfo=UTC)
    before, after, left = (Figure(value=v, low=v, high=v) for v in (0.8, 0.2, margin))
    return Calibration(
        kind="rotation",
        source=CalibratedSide(domain="north", units_sha256=UNITS),
        target=CalibratedSide(domain="south", units_sha256=UNITS),
        map=SWAP,
        made=Making(method="anchors", anchors=4, created=made),
        effect=Effect(distance_before=before, distance=after, margin=left),
        expires=made.replace(year=2027),
    )


@dataclass
class Desk:
    """A folder with two models, their pictures, anchors and a calibration."""

    folder: Path

    def evaluate(self, *words: str) -> tuple[str, BaseException | None]:
        """What is shown, and what is raised."""
        models = ["--local", str(self.folder / "north"), str(self.folder / "south")]
        places = [word for name in "ab" for word in ("--pictures", str(self.folder / name))]
        fast = ["--evaluations", "6"]
        file = str(self.folder / "c.json")
        done = CliRunner().invoke(cli, ["calibrate", "--evaluate", file, *models, *places, *fast, *words])
        return done.output, done.exception


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    for seed, name in enumerate(("north", "south"), start=1):
        bundle = tiny(name, seed=seed, channels=3)
        save_bundle(folder / name, bundle.manifest, bundle.state)
    most = np.array([1.0, 0.3, 0.1], np.float32)[:, None, None]
    shown = {
        "a": pictures(12, channels=3, seed=1) * most,
        "b": (pictures(12, channels=3, seed=2) * most)[:, [1, 0, 2]],  # what varies most is another channel
        "A": pictures(4, channels=3, seed=3),
        "B": pictures(4, channels=3, seed=4),
    }
    for name, stack in shown.items():
        (folder / name).mkdir()
        for number, pixels in enumerate(to_pixels(stack)):
            (folder / name / f"{number:02}.png").write_bytes(encode_png(pixels))
    write_calibration(calibration(), folder / "c.json")
    return Desk(folder)


@pytest.mark.slow
def test_without_pairs_the_figures_are_shown_and_the_records_own_decide(desk: Desk) -> None:
    """Distance, whiteness and round trip; no PSNR, because nothing is known to be true."""
    shown, raised = desk.evaluate("--format", "json")
    assert raised is None, shown
    figures = {row["name"]: row for row in json.loads(shown[shown.index("{") :])["figures"]}
    assert list(figures) == ["distance of colours", "latents: patch correlation / noise's", "round trip, dB"]
    assert figures["distance of colours"]["gain"]["high"] < 0
    assert all(row["without"] is not None for row in figures.values())
    (desk.folder / "small.json").unlink(missing_ok=True)
    write_calibration(calibration(margin=0.001), desk.folder / "small.json")
    _, raised = desk.evaluate("--evaluate", str(desk.folder / "small.json"))
    assert isinstance(raised, CalibrationIneffective)
    assert "another optimum" in raised.detail
    _, raised = desk.evaluate("--evaluate", str(desk.folder / "small.json"), "--force")
    assert raised is None


@pytest.mark.slow
def test_with_anchors_a_calibration_that_does_not_help_is_refused_with_its_gains(desk: Desk) -> None:
    """The anchors here are noise, so nothing is nearer to them."""
    shown, raised = desk.evaluate("--anchors", str(desk.folder / "A"), str(desk.folder / "B"))
    assert isinstance(raised, CalibrationIneffective)
    assert "PSNR, dB changes by" in raised.detail
    assert "true partner among the 5 nearest" in shown
    assert "map alone" in shown


def test_what_does_not_belong_together_is_refused_before_anything_is_computed(desk: Desk) -> None:
    """Models the other way round; one folder for two sides; options of making."""
    runner, file = CliRunner(), str(desk.folder / "c.json")
    north, south = str(desk.folder / "north"), str(desk.folder / "south")
    for words, kind in (
        (["--local", south, north], CalibrationForeign),
        (["--local", north, south, "--pictures", "x"], UsageError),
        (["--local", north, south, "--kind", "tone"], UsageError),
        ([], UsageError),
    ):
        done = runner.invoke(cli, ["calibrate", "--evaluate", file, *words])
        assert isinstance(done.exception, kind), (words, done.output, done.exception)
