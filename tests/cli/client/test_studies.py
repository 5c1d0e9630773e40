"""`ddib translate` of studies, up to the node: what is sent again, what is refused, and what the messages say."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, SourceNodeDouble, npy, points
from tests.formats.dicom.files import write_series
from tests.formats.maps import OWNER, write_map

VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


@pytest.fixture
def translate(north, tmp_path):
    words = ["--profile", str(north.profile_path), "--to", TARGET, "--out", str(tmp_path / "out")]
    return lambda *given: (run(["translate", *words, *map(str, given)]), north.script.calls)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")
def test_maps_below_a_folder_are_sent_as_numbers(translate, north, tmp_path):
    """Each by itself, and nothing of its tags; a file beside them is translated although they are not."""
    heights = np.arange(-600, 600, dtype=np.int16).reshape(1, 30, 40)
    for name in ("town.tif", "ward/land.tif"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        write_map(tmp_path / "maps" / name, heights)
    (tmp_path / "maps" / "scan.npy").write_bytes(npy(points(100)))
    code, _ = translate(tmp_path / "maps", "--intensity", "values")
    inputs = [content for job in north.service.jobs.values() for content in job.inputs]
    assert inputs == [*[npy(heights[0, :, :, None])] * 2, npy(points(100))]
    assert code == ExitCode.JOB_FAILED  # this double answers with points
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan.npy"), points(100) * 2)
    assert OWNER.encode() in (tmp_path / "maps" / "town.tif").read_bytes()
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.parts")} == {"out", "ward"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "said"), [(pb.JOB_STATE_CANCELLED, "was cancelled"), (pb.JOB_STATE_FAILED, "failed")]
)
def test_a_job_that_did_not_finish_makes_no_background(state, said, translate, north, tmp_path, capsys):
    """The other series is translated, and the same command asks for what is missing alone."""

    def ended(answer):
        if len(north.service.jobs) == 1:
            answer.job.state = state
            for item in answer.job.items[2:]:
                item.state = pb.ITEM_STATE_RECEIVED

    north.script.pictures, north.script.forge = True, ended
    folders = [tmp_path / "scans" / name for name in ("p1", "p2")]
    for folder in folders:
        write_series(folder, VALUES)
    assert translate(tmp_path / "scans")[0] == ExitCode.JOB_FAILED
    (first, _) = north.service.jobs
    assert f"scans/p1/series-1: job {first} {said}" in capsys.readouterr().err
    found = tmp_path / "out" / "scans"
    assert not (found / "p1" / "series-1").exists()
    assert len(list((found / "p2" / "series-1").iterdir())) == 4
    assert translate(tmp_path / "scans")[0] == 0
    assert [len(job.inputs) for job in north.service.jobs.values()] == [4, 4, 2]
