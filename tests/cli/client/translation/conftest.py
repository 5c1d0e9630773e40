"""A source node's double, a folder of points, and `ddib translate` of it."""

from __future__ import annotations

import pytest

from ddib_fed.cli.main import run
from ddib_fed.client import folder_run
from tests.client.scripted_source import TARGET, SourceNodeDouble, npy, points


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


@pytest.fixture
def scans(tmp_path):
    """Five files in two folders."""
    folder = tmp_path / "scans"
    for number in range(5):
        path = folder / ("deep/er" if number % 2 else ".") / f"scan-{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(points(10, start=number)))
    return folder


@pytest.fixture
def words(north, scans, tmp_path):
    return ["translate", str(scans), "--to", TARGET, "--out", str(tmp_path / "out"),
            "--profile", str(north.profile_path)]  # fmt: skip


@pytest.fixture
def translate(words):
    return lambda *more: run([*words, *map(str, more)])


@pytest.fixture
def written(tmp_path):
    out = tmp_path / "out"
    return lambda: sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


@pytest.fixture
def few_files(monkeypatch):
    monkeypatch.setattr(folder_run, "JOB_FILES", 2)
