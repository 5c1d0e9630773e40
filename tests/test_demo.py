"""`ddib demo`: its folder, what it measures of the files, and its bounds."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.datasets import sample
from ddib_fed.demo import MARKER, finish, prepare
from ddib_fed.demo_figures import measure_points
from ddib_fed.errors import AlreadyExists, ExitCode, OutOfBounds
from ddib_fed.record import CycleError, Record


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


def write_record(folder: Path, name: str, record: Record) -> None:
    (folder / f"{name}.json").write_bytes(record.to_json())


def test_figures_come_from_the_files_and_not_from_what_the_nodes_say(tmp_path):
    """A round trip that is off ends the demo although the record reports zero; the report is there with its keys."""
    source, target = sample("moons", 2_000, 1), sample("checkerboards", 2_000, 2)
    out, sent = tmp_path / "out", tmp_path / "points.npy"
    out.mkdir()
    np.save(sent, source)
    parts = {
        "points": target, "points.latent": np.zeros_like(source), "points.returned": source + np.float32(0.1),
    }  # fmt: skip
    for name, points in parts.items():
        np.save(out / f"{name}.npy", points)
    exact = CycleError(median=0, mean=0, p99=0, max=0)
    record = Record(
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
