"""`ddib demo`: its folder, its bounds, and two real nodes that are always stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.cli.demo.command import MARKER, NODES, demonstrate, finish, prepare
from ddib_fed.cli.demo.institutions import Institution, free_ports, still_runs
from ddib_fed.cli.demo.nodes import Pair
from ddib_fed.cli.demo.pictures import PAIR
from ddib_fed.cli.demo.points import Clouds, measure
from ddib_fed.cli.demo.report import Bound, Outcome, write_report
from ddib_fed.cli.main import run
from ddib_fed.client.views import CycleError, LatentStatistics, Part, Provenance, Settings
from ddib_fed.datasets.synthetic import sample
from ddib_fed.errors import AlreadyExists, ExitCode, NotReady, OutOfBounds
from ddib_fed.latent import Latent

PEOPLE = [("alice", "south.example/checkerboards"), ("bob", "west.example/relief")]


def test_a_folder_that_no_demo_made_is_refused(tmp_path):
    """Somebody's data are not emptied."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExists):
        prepare(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_an_earlier_demo_is_made_anew(tmp_path):
    """What the demo made goes; what somebody put beside it stays."""
    prepare(tmp_path / "demo")
    for name in ("north", "east"):
        (tmp_path / "demo" / name / "model").mkdir(parents=True)
    (tmp_path / "demo" / "report.json").write_text("{}")
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    prepare(tmp_path / "demo")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [MARKER, "notes.txt"]


@pytest.mark.parametrize(("value", "ok"), [(0.9, True), (1.0, True), (1.1, False), (float("nan"), False)])
def test_a_figure_is_held_to_its_bound(value, ok):
    """A figure that is no number is out of bounds too."""
    assert Bound.at_most("figure", value, 1.0).ok is ok


@pytest.mark.parametrize(("value", "ok"), [(0.9, False), (1.0, True), (1.1, True), (float("nan"), False)])
def test_a_figure_may_have_a_least_value(value, ok):
    """The same the other way round."""
    bound = Bound.at_least("figure", value, 1.0)
    assert (bound.ok, bound.sense) == (ok, "at least")


def provenance() -> Provenance:
    statistics = LatentStatistics(0, 1, 0, 0, 4_000)
    none = b"\0" * 32
    return Provenance(
        "job", "north.example", "moons", "south.example", "checkerboards", none, none, none, none, none,
        Settings(), 0.0, statistics, 48_000, {}, CycleError(0, 0, 0, 0), 2_000,
    )  # fmt: skip


def test_figures_come_from_the_files_and_not_from_what_the_nodes_say(tmp_path):
    """A round trip that is off is out of bounds although provenance reports zero; the report has the named keys."""
    source, target = sample("moons", 2_000, 1), sample("checkerboards", 2_000, 2)
    clouds = Clouds(source, np.zeros_like(source), target, source + np.float32(0.1))
    figures = measure(clouds, provenance(), "checkerboards")
    bounds = figures.bounds()
    assert {bound.name: bound.ok for bound in bounds} == {
        "cycle.median": False, "cycle.mean": False, "cycle.p99": False, "sliced_w2": True
    }  # fmt: skip
    write_report(tmp_path / "report.json", [Outcome("points", "", asdict(figures), bounds)], 1.5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["seconds", "points", "bounds"]
    assert list(report["points"]) == [
        "count", "steps", "cycle", "sliced_w2", "sliced_w2_floor", "latent", "wire_bytes"
    ]  # fmt: skip
    assert list(report["points"]["cycle"]) == ["median", "mean", "p99", "max"]
    assert list(report["bounds"][0]) == ["name", "value", "bound", "ok", "sense"]


def test_figures_out_of_bounds_end_the_demo_and_are_still_reported(tmp_path):
    """Clouds that neither come back nor look like the target: the error names the figures, and the report is there."""
    source = sample("moons", 1_000, 1)
    np.save(tmp_path / "points.npy", source)
    spoilt = {Part.LATENT: source, Part.TRANSLATION: source + 3, Part.RETURNED: source + 1}
    files = {part: tmp_path / f"{part.name}.npy" for part in spoilt}
    for part, cloud in spoilt.items():
        np.save(files[part], cloud)
    delivered = Delivered(0, "points.npy", files, tmp_path / "points.json", provenance())
    clouds = Clouds.load(tmp_path / "points.npy", delivered.files)
    figures = measure(clouds, delivered.provenance, "checkerboards")
    outcomes = [Outcome("points", "", asdict(figures), figures.bounds())]
    with pytest.raises(OutOfBounds, match=r"cycle\.median, cycle\.mean, cycle\.p99, sliced_w2") as caught:
        finish(tmp_path / "report.json", outcomes, 1.0)
    assert caught.value.exit_code == ExitCode.OUT_OF_BOUNDS
    report = json.loads((tmp_path / "report.json").read_text())
    assert [bound["ok"] for bound in report["bounds"]] == [False] * 4


@pytest.mark.e2e
def test_a_node_that_cannot_start_is_shown_by_its_log_and_the_other_is_stopped(tmp_path):
    """South's port is taken: the error names the hop and ends with its log; north's process is gone."""
    prepare(tmp_path / "demo")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        north = Institution("north.example", "source", "moons", tmp_path / "demo" / "north", free_ports(1)[0])
        south = Institution(
            "south.example", "target", "checkerboards", tmp_path / "demo" / "south", taken.getsockname()[1]
        )
        pair = Pair(tmp_path / "demo", north, south, "alice")
        with pytest.raises(NotReady, match="cannot be bound") as caught, pair.running(keep=True):
            pass
    assert caught.value.hop == "target south.example"
    assert north.process is not None
    assert north.process.poll() is not None


def demo_from(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """`ddib demo` in a process of its own, in a folder without the sources, where no proxy answers.

    `before` is run first, in the same process.
    """
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    script = f"{before}\nfrom ddib_fed.cli.main import main; main()"
    command = [sys.executable, "-c", script, "demo", "--points", "2000", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_the_demo_from_anywhere_with_a_dead_proxy(tmp_path, capsys):
    """Ends with 0 and leaves what it promises; kept nodes answer, hold only their own model, and can be drained."""
    done = demo_from(tmp_path, "--keep")
    out = tmp_path / "ddib-demo"
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        check_report(json.loads((out / "report.json").read_text()))
        assert (out / "translation.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "pictures.png").read_bytes().startswith(b"\x89PNG")
        check_pictures(out / "pictures")
        assert done.stdout.count("ddib domains --profile") == len(PEOPLE)
        assert run(["demo", "--out", str(out)]) == ExitCode.CONFLICT
        for person, target in PEOPLE:
            assert run(["domains", "--profile", str(out / person / "client.toml")]) == 0
            assert target in capsys.readouterr().out
    finally:
        drained = [run(["drain", "--config", str(out / name / "node.toml")]) for name in NODES]
    assert drained == [0] * len(NODES)
    models = [json.loads((out / name / "model" / "manifest.json").read_text())["digest"] for name in NODES]
    assert len(set(models)) == len(NODES)


def check_report(report: dict) -> None:
    """Both parts are in it, and each figure is within its bound."""
    assert report["points"]["count"] == 2_000
    pictures = report["pictures"]
    assert pictures["count"] == len(pictures["items"]) == 16
    assert pictures["cycle_psnr"]["min"] <= pictures["cycle_psnr"]["median"]
    assert pictures["paired_mse"] < pictures["baseline_mse"]["source"]
    assert len(report["bounds"]) == 8
    assert all(bound["ok"] for bound in report["bounds"])


def check_pictures(folder: Path) -> None:
    """Every picture is there and back; the latents that were measured are those that crossed."""
    sent = sorted((folder / "in").iterdir())
    assert len(sent) == 16
    for path in sent:
        result = folder / "translated" / path.name
        record = json.loads(result.with_suffix(".json").read_text())
        latent = np.load(result.with_suffix(".latent.npy"))
        assert Latent.from_array(latent).sha256.hex() == record["latent_sha256"]
        assert result.exists()
        assert result.with_suffix(".returned.png").exists()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_without_the_pictures_package_the_demo_shows_points(tmp_path):
    """It ends with 0, says which extra is missing and how to get it, and says so in the report."""
    before = "import sys; sys.modules['mpl_toolkits.basemap_data'] = None"  # as if it were not installed
    done = demo_from(tmp_path, before=before)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "basemap-data, which is not installed; pip install 'ddib-fed[data]'" in done.stdout
    report = json.loads((tmp_path / "ddib-demo" / "report.json").read_text())
    assert report["pictures"]["extra"] == "data"
    assert report["points"]["count"] == 2_000
    assert not (tmp_path / "ddib-demo" / "pictures.png").exists()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_part_that_fails_stops_the_nodes_of_the_part_before(tmp_path):
    """The points' nodes were to be kept, but the pictures' model is none: nothing runs on."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    with pytest.raises(NotReady, match="BUNDLE_INVALID"):
        demonstrate(
            tmp_path / "demo", keep=True, points=1_000, models=dict.fromkeys(PAIR, tmp_path / "broken")
        )
    assert not any(still_runs(tmp_path / "demo" / name / "node.toml") for name in NODES)


def test_a_folder_without_a_node_has_none_running(tmp_path):
    """Neither without a configuration nor with a stopped node."""
    assert not still_runs(tmp_path / "node.toml")
