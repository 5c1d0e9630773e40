"""A client's full disk: the file, the job and the command that fetches the rest are named."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from tests.client.scripted_source import TARGET, SourceNodeDouble, npy, points
from tests.small_disks import small_disk


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


def test_results_that_do_not_fit_are_fetched_later_by_the_same_command(north, tmp_path, capsys) -> None:
    """What was written stays; the node keeps the rest; nothing is acknowledged that is not on the disk."""
    files = []
    for number in range(3):
        path = tmp_path / f"scan-{number}.npy"
        path.write_bytes(npy(points(20_000, start=number)))
        files.append(str(path))
    with small_disk(tmp_path / "disk", 1) as disk:
        out = disk.folder / "out"
        disk.fill(leave=400_000)  # two of the results have 160 kB each, and their records
        words = ["--profile", str(north.profile_path), "--to", TARGET, "--out", str(out)]
        translate = ["translate", *files, *words]
        assert run(translate) == ExitCode.EXHAUSTED
        error = capsys.readouterr().err
        (job_id,) = north.service.jobs
        assert f"{out / 'scan-2.npy'} cannot be written: No space left on device" in error
        assert job_id in error
        assert "[DISK_FULL]" in error
        assert 2 not in north.service.jobs[job_id].delivered
        disk.free()
        assert run(translate) == 0
        np.testing.assert_array_equal(np.load(out / "scan-2.npy"), points(20_000, start=2) * 2)
        assert north.service.jobs[job_id].delivered == {0, 1, 2}
        assert not list(out.glob(".*"))
