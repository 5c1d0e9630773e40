"""`ddib demo`: its folder, what it measures of the files, its bounds, and real nodes that are always stopped."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.calibration.record import CalibratedSide, Calibration, Effect, Making
from ddib_fed.cli import demo as program
from ddib_fed.cli.demo import MARKER, NODES, demonstrate, finish, node_state, prepare
from ddib_fed.cli.demo_figures import Bound, ChosenPictures, DemoPart, measure_pictures, measure_points
from ddib_fed.data.pictures import encode_png
from ddib_fed.data.shipped import SHIPPED, ShippedPictures
from ddib_fed.data.synthetic import sample
from ddib_fed.engine.record import CycleError, SolverUsed, Translation
from ddib_fed.errors import AlreadyExists, ExitCode, NotReady, OutOfBounds
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap

COUNT = 6


def test_a_folder_of_an_earlier_demo_is_made_anew_and_another_is_refused(tmp_path):
    """What the demo made goes; what somebody put beside it stays, and no other folder is emptied."""
    prepare(tmp_path / "demo")
    for name in ("north", "east"):
        (tmp_path / "demo" / name / "model").mkdir(parents=True)
    (tmp_path / "demo" / "report.json").write_text("{}")
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    prepare(tmp_path / "demo")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [MARKER, "notes.txt"]
    with pytest.raises(AlreadyExists):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("value", "most", "least"),
    [(0.9, True, False), (1.0, True, True), (1.1, False, True), (float("nan"), False, False)],
)
def test_a_figure_is_held_to_its_bound(value, most, least):
    assert Bound("figure", value, 1.0).ok is most
    assert Bound("figure", value, 1.0, "at least").ok is least


def write_record(folder: Path, name: str, record: Translation) -> None:
    (folder / f"{name}.json").write_bytes(record.to_json())


def test_figures_come_from_the_files_and_not_from_what_the_nodes_say(tmp_path):
    """A round trip that is off ends the demo although the record reports zero; the report is there with its keys."""
    source, target = sample("moons", 2_000, 1), sample("checkerboards", 2_000, 2)
    out, sent = tmp_path / "out", tmp_path / "points.npy"
    out.mkdir()
    np.save(sent, source)
    parts = {
        "points": target,
        "points.latent": np.zeros_like(source),
        "points.returned": source + np.float32(0.1),
    }
    for name, points in parts.items():
        np.save(out / f"{name}.npy", points)
    exact = CycleError(median=0, mean=0, p99=0, max=0)
    record = Translation(
        source_institution="north.example", source_domain="moons", target_institution="south.example",
        target_domain="checkerboards", wire_bytes=48_000, cycle=exact, samples=2_000,
    )  # fmt: skip
    write_record(out, "points", record)
    found = measure_points(sent, out, tmp_path / "translation.png")
    with pytest.raises(OutOfBounds, match=r"cycle\.median, cycle\.mean, cycle\.p99$") as caught:
        finish(tmp_path / "report.json", [found], 1.5)
    assert caught.value.exit_code == ExitCode.OUT_OF_BOUNDS
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["seconds", "points", "bounds"]
    assert list(report["points"]["cycle"]) == ["median", "mean", "p99", "max"]
    assert set(report["bounds"][0]) == {"name", "value", "bound", "ok", "sense"}


def shipped(name: str, seed: int) -> ShippedPictures:
    """Noise in the place of a shipped domain's pictures, in whole numbers of 255 parts."""
    generator = np.random.default_rng(seed)
    shape = SHIPPED[name].shape
    parts = [np.float32(generator.integers(0, 256, (count, *shape)) / 127.5 - 1.0) for count in (40, 10, 31)]
    return ShippedPictures(SHIPPED[name], *parts)


def agreed() -> Calibration:
    figure, made = Figure(value=0.5, low=0.5, high=0.5), datetime(2026, 11, 25, tzinfo=UTC)
    source, target = (
        CalibratedSide(institution=f"{name}.example", domain=domain, units_sha256="0" * 64)
        for name, domain in (("east", "satellite"), ("west", "relief"))
    )
    return Calibration(
        kind="rotation", source=source, target=target, map=ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1))),
        made=Making(method="aggregates", target_pictures=4_000, crossed_bytes=4_180, epsilon=1, delta=1e-5,
                    created=made),
        effect=Effect(distance_before=figure, distance=figure, margin=figure), expires=made.replace(year=2027),
    )  # fmt: skip


CALIBRATION = agreed()


class Studio:
    """Two domains of noise, six pictures of which were sent, and files as a client would have written them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.target = shipped("satellite", 1), shipped("relief", 2)
        self.chosen = ChosenPictures.evenly(self.source, self.target, COUNT)
        self.latent = np.random.default_rng(3).standard_normal((COUNT, 3, 32, 32)).astype(np.float32)

    def measured(
        self, translated: np.ndarray, returned: np.ndarray, calibrated: np.ndarray | None = None
    ) -> DemoPart:
        """Of files with these pictures; by default the calibrated ones are as the truth has it."""
        record = Translation(
            source_institution="east.example", source_domain="satellite", target_institution="west.example",
            target_domain="relief", solver=SolverUsed(evaluations=32), soften_sigma=0.02, wire_bytes=30_000,
        )  # fmt: skip
        out, after = self.folder / "translated", self.folder / "calibrated"
        out.mkdir()
        after.mkdir()
        mapped = self.chosen.truth if calibrated is None else calibrated
        for i, name in enumerate(self.chosen.names):
            np.save(out / f"{name}.latent.npy", self.latent[i : i + 1])
            (out / f"{name}.png").write_bytes(encode_png(to_pixels(translated)[i]))
            (out / f"{name}.returned.png").write_bytes(encode_png(to_pixels(returned)[i]))
            (after / f"{name}.png").write_bytes(encode_png(to_pixels(mapped)[i]))
            write_record(out, name, record.model_copy(update={"doubtful": i == 2}))
        unpaired, sheet = self.target.train, self.folder / "pictures.png"
        return measure_pictures(self.chosen, self.folder, CALIBRATION, unpaired, sheet)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def wrong(part: DemoPart) -> list[str]:
    return [bound.name for bound in part.bounds if not bound.ok]


def test_what_is_sent_is_the_source_exactly_and_nothing_of_the_truth(studio: Studio) -> None:
    studio.chosen.write(studio.folder / "in")
    names = sorted(path.name for path in (studio.folder / "in").iterdir())
    assert names == [f"{row:03}.png" for row in range(0, 31, 6)]
    np.testing.assert_allclose(studio.chosen.read(studio.folder / "in"), studio.chosen.source, atol=1e-6)


def test_figures_of_pictures_come_from_the_files(studio: Studio) -> None:
    returned = studio.chosen.source.copy()
    returned[2] *= -1
    found = studio.measured(studio.chosen.truth, returned)
    figures = found.figures
    expected = 10 * np.log10(4 / np.square(2 * studio.chosen.source[2]).mean())
    assert figures["cycle_psnr"]["min"] == pytest.approx(expected, abs=1e-3)
    assert figures["cycle_psnr"]["median"] == 120.0
    assert figures["paired_mse"] == pytest.approx(0.0, abs=1e-10)
    assert (figures["doubtful"], figures["wire_bytes"], figures["count"]) == (1, COUNT * 30_000, COUNT)
    assert wrong(found) == ["pictures.cycle_psnr.min"]
    assert len(found.bounds) == 5


def test_a_translation_that_is_no_better_than_chance_is_out_of_bounds(studio: Studio) -> None:
    """The truth of other places, and latents that show the picture; a calibration that makes it worse."""
    ramp = np.linspace(-2, 2, 32, dtype=np.float32)
    studio.latent = studio.latent * np.float32(0.5) + ramp
    found = studio.measured(np.clip(-2 * studio.chosen.truth, -1, 1), studio.chosen.source)
    assert wrong(found) == ["pictures.paired_mse", "pictures.latent.patch_correlation"]


def test_a_calibration_that_makes_translations_worse_is_out_of_bounds(studio: Studio) -> None:
    found = studio.measured(studio.chosen.truth, studio.chosen.source, -studio.chosen.truth)
    assert wrong(found) == ["pictures.calibrated.paired_mse"]
    worse = np.square(2 * studio.chosen.truth).mean()
    assert found.figures["calibrated"]["paired_mse"] == pytest.approx(worse, rel=1e-5)


@pytest.mark.e2e
def test_a_node_that_cannot_start_is_shown_by_its_log_and_all_others_are_stopped(tmp_path, monkeypatch):
    """Something else listens at south's port: the hop, and the end of its log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (free,), busy = program.free_ports(1), taken.getsockname()[1]
        monkeypatch.setattr(program, "free_ports", lambda _: (free, busy))
        with pytest.raises(NotReady, match=str(busy)) as caught:
            demonstrate(tmp_path / "demo", points=1_000)
    assert caught.value.hop == "target south.example"
    assert not any(node_state(tmp_path / "demo" / name / "node.toml") for name in NODES)
