"""`ddib demo`: its folder, its bounds, and two real nodes that are always stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ddib_fed.cli.delivery import Delivered
from ddib_fed.cli.demo import MARKER, Demonstration, finish, prepare
from ddib_fed.cli.demo_report import Bound, Clouds, measure, write_report
from ddib_fed.cli.institutions import Institution, free_ports, still_runs
from ddib_fed.cli.main import run
from ddib_fed.data.synthetic import sample
from ddib_fed.errors import AlreadyExists, ExitCode, NotReady, OutOfBounds
from ddib_fed.node.views import CycleError, LatentStatistics, Part, Provenance, Settings


def test_a_folder_that_no_demo_made_is_refused(tmp_path):
    """Somebody's data are not emptied."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(AlreadyExists):
        prepare(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_an_earlier_demo_is_made_anew(tmp_path):
    """What the demo made goes; what somebody put beside it stays."""
    prepare(tmp_path / "demo")
    (tmp_path / "demo" / "north" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "report.json").write_text("{}")
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    prepare(tmp_path / "demo")
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [MARKER, "notes.txt"]


@pytest.mark.parametrize(("value", "ok"), [(0.9, True), (1.0, True), (1.1, False), (float("nan"), False)])
def test_a_figure_is_held_to_its_bound(value, ok):
    """A figure that is no number is out of bounds too."""
    assert Bound.at_most("figure", value, 1.0).ok is ok


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
    assert {bound.name: bound.ok for bound in figures.bounds} == {
        "cycle.median": False, "cycle.mean": False, "cycle.p99": False, "sliced_w2": True
    }  # fmt: skip
    write_report(tmp_path / "report.json", figures, 1.5)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["seconds", "points", "bounds"]
    assert list(report["points"]) == [
        "count", "steps", "cycle", "sliced_w2", "sliced_w2_floor", "latent", "wire_bytes"
    ]  # fmt: skip
    assert list(report["points"]["cycle"]) == ["median", "mean", "p99", "max"]
    assert list(report["bounds"][0]) == ["name", "value", "bound", "ok"]


def test_figures_out_of_bounds_end_the_demo_and_are_still_reported(tmp_path):
    """Clouds that neither come back nor look like the target: the error names the figures, and the report is there."""
    source = sample("moons", 1_000, 1)
    np.save(tmp_path / "points.npy", source)
    spoilt = {Part.LATENT: source, Part.TRANSLATION: source + 3, Part.RETURNED: source + 1}
    files = {part: tmp_path / f"{part.name}.npy" for part in spoilt}
    for part, cloud in spoilt.items():
        np.save(files[part], cloud)
    delivered = Delivered(0, "points.npy", files, tmp_path / "points.json", provenance())
    with pytest.raises(OutOfBounds, match=r"cycle\.median, cycle\.mean, cycle\.p99, sliced_w2") as caught:
        finish(Demonstration.of(tmp_path), delivered, time.perf_counter())
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
        demonstration = Demonstration(tmp_path / "demo", north, south)
        with pytest.raises(NotReady, match="cannot be bound") as caught, demonstration.running(keep=False):
            pass
    assert caught.value.hop == "target south.example"
    assert north.process is not None
    assert north.process.poll() is not None


@pytest.mark.e2e
def test_the_demo_from_anywhere_with_a_dead_proxy(tmp_path, capsys):
    """Ends with 0 and leaves what it promises; kept nodes answer, hold only their own model, and can be drained."""
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    command = [
        sys.executable,
        "-c",
        "from ddib_fed.cli.main import main; main()",
        "demo",
        "--points",
        "2000",
        "--keep",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    out = tmp_path / "ddib-demo"
    configs = [out / name / "node.toml" for name in ("north", "south")]
    try:
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "report.json").read_text())["points"]["count"] == 2_000
        assert (out / "translation.png").read_bytes().startswith(b"\x89PNG")
        assert "ddib domains --profile" in done.stdout
        assert run(["demo", "--out", str(out)]) == ExitCode.CONFLICT
        assert run(["domains", "--profile", str(out / "alice" / "client.toml")]) == 0
        assert "south.example/checkerboards" in capsys.readouterr().out
    finally:
        drained = [run(["drain", "--config", str(config)]) for config in configs]
    assert drained == [0, 0]
    models = [
        json.loads((out / name / "model" / "manifest.json").read_text())["digest"]
        for name in ("north", "south")
    ]
    assert models[0] != models[1]


def test_a_folder_without_a_node_has_none_running(tmp_path):
    """Neither without a configuration nor with a stopped node."""
    assert not still_runs(tmp_path / "node.toml")
