"""`ddib translate` of studies, up to the node: what is sent, refused, left out and sent again, and by which rule."""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.client import files as client_files
from ddib_fed.data.pictures import encode_png
from ddib_fed.data.study import Options
from ddib_fed.errors import ExitCode
from ddib_fed.formats import NIFTI as READER
from ddib_fed.formats import Nifti
from ddib_fed.formats.nifti import NiftiStudy
from ddib_fed.recognition import open_paths
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import NORTH, TARGET, npy, points
from tests.formats.dicom.files import write_series
from tests.formats.echoes import NIFTI
from tests.formats.maps import OWNER, write_map
from tests.formats.test_tiles import SMOOTH

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")]
VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


@pytest.fixture
def translate(north, tmp_path):
    words = ["--profile", str(north.profile_path), "--to", TARGET, "--out", str(tmp_path / "out")]
    return lambda *given: run(["translate", *words, *map(str, given)])


@pytest.fixture
def given(north, tmp_path):
    """Three series, for a node that takes pictures."""
    north.script.pictures = True
    folders = [tmp_path / "given" / name for name in "abc"]
    for folder in folders:
        write_series(folder, VALUES[:3])
    return folders


def inputs_of(north) -> list[bytes]:
    return [content for job in north.service.jobs.values() for content in job.inputs]


def trained(north, intensity: str, slices: str = "") -> None:
    """Say how the model of the node was trained."""
    north.script.pictures = True
    north.script.listed = pb.ListDomainsResponse(
        institution=NORTH, domain="brain", sample_kind="picture", sample_shape=[1, 8, 8],
        intensity=intensity, slices=slices,
    )  # fmt: skip


def test_maps_below_a_folder_are_sent_as_numbers(translate, north, tmp_path):
    """Each by itself, and nothing of its tags; a file beside them is translated although they are not."""
    heights = np.arange(-600, 600, dtype=np.int16).reshape(1, 30, 40)
    for name in ("town.tif", "ward/land.tif"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        write_map(tmp_path / "maps" / name, heights)
    (tmp_path / "maps" / "scan.npy").write_bytes(npy(points(100)))
    code = translate(tmp_path / "maps", "--intensity", "values")
    assert inputs_of(north) == [*[npy(heights[0, :, :, None])] * 2, npy(points(100))]
    assert code == ExitCode.JOB_FAILED  # this double answers with points
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan.npy"), points(100) * 2)
    assert OWNER.encode() in (tmp_path / "maps" / "town.tif").read_bytes()
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.parts")} == {"out", "ward"}


def test_all_jobs_of_a_volume_name_it_and_those_of_maps_and_pictures_name_none(translate, north, tmp_path):
    """Two volumes are two, and one under another rule of intensity is another: with one noise both would show more."""
    north.script.pictures, north.script.most_items = True, 2
    for name, values in (("a", VALUES), ("b", VALUES[::-1])):
        write_series(tmp_path / name, values)
    write_map(tmp_path / "land.tif", np.arange(1200, dtype=np.int16).reshape(1, 30, 40))
    (tmp_path / "plain.png").write_bytes(encode_png(np.arange(100, dtype=np.uint8).reshape(10, 10, 1)))
    named = []
    for given in ("a", "b", "land.tif", "plain.png"):
        before = len(north.service.jobs)
        assert translate(tmp_path / given) == ExitCode.OK
        named.append([job.header.volume_sha256 for job in [*north.service.jobs.values()][before:]])
    assert translate(tmp_path / "a", "--force", "--intensity", "window:900,500") == ExitCode.OK
    again = [*north.service.jobs.values()][-1].header.volume_sha256
    assert [len(each) for each in named[:2]] == [2, 2]
    assert len({*named[0], *named[1], again}) == 3
    assert {len(each) for each in (*named[0], *named[1], again)} == {32}
    assert {*named[2], *named[3]} == {b""}


def end_after_two(north, state: int) -> None:
    """Let the first job end with two of its items."""

    def ended(answer):
        if len(north.service.jobs) == 1:
            answer.job.state = state
            for item in answer.job.items[2:]:
                item.state = pb.ITEM_STATE_RECEIVED

    north.script.pictures, north.script.forge = True, ended


@pytest.mark.parametrize(
    ("state", "said"), [(pb.JOB_STATE_CANCELLED, "was cancelled"), (pb.JOB_STATE_FAILED, "failed")]
)
def test_a_job_that_did_not_finish_makes_no_background(state, said, translate, north, tmp_path, capsys):
    """The other series is translated, and the same command asks for what is missing alone."""
    end_after_two(north, state)
    folders = [tmp_path / "scans" / name for name in ("p1", "p2")]
    for folder in folders:
        write_series(folder, VALUES)
    assert translate(tmp_path / "scans") == ExitCode.JOB_FAILED
    (first, _) = north.service.jobs
    assert f"scans/p1/series-1: job {first} {said}" in capsys.readouterr().err
    found = tmp_path / "out" / "scans"
    assert not (found / "p1" / "series-1").exists()
    assert len(list((found / "p2" / "series-1").iterdir())) == 4
    assert translate(tmp_path / "scans") == 0
    assert [len(job.inputs) for job in north.service.jobs.values()] == [4, 4, 2]


@pytest.mark.parametrize(
    "changed",
    [{"target_model_sha256": "4" * 64}, {"source_model_sha256": "4" * 64}, {"calibration_sha256": "5" * 64},
     {"soften_sigma": 0.1}],
    ids=lambda each: next(iter(each)),
)  # fmt: skip
def test_a_series_is_never_of_two_models_calibrations_or_settings(changed, translate, north, tmp_path):
    """Those were replaced after the first half: its slices are translated again, once."""
    end_after_two(north, pb.JOB_STATE_CANCELLED)
    write_series(tmp_path / "mr", VALUES)
    assert translate(tmp_path / "mr") == ExitCode.JOB_FAILED

    def replaced(messages):
        for message in messages:
            if message.result.HasField("provenance"):
                for name, value in changed.items():
                    setattr(message.result.provenance, name, value)
        return messages

    north.script.tamper = replaced
    assert translate(tmp_path / "mr") == ExitCode.OK
    assert [len(job.inputs) for job in north.service.jobs.values()] == [4, 2, 4]
    record = json.loads((tmp_path / "out" / "mr" / "series-1.json").read_text())
    assert all(each.items() >= changed.items() for each in (record, *record["study"]["items"]))
    assert len(record["study"]["items"]) == 4


@pytest.fixture
def sent(north):
    """How many items each job had since the last call."""
    seen = 0

    def new():
        nonlocal seen
        jobs = [*north.service.jobs.values()][seen:]
        seen += len(jobs)
        return [len(job.inputs) for job in jobs]

    return new


def refuse(north, *jobs, items=(1,)):
    """Let items of some jobs fail, by the job's number."""

    def forge(answer):
        if [*north.service.jobs].index(answer.job.job_id) in jobs:
            for at in items:
                answer.job.items[at].state = pb.ITEM_STATE_FAILED
                answer.job.items[at].error.reason = "LATENT_NOT_GAUSSIAN"
                answer.job.items[at].error.sentence = "its latent is no noise"

    north.script.forge = forge


def test_a_refused_slice_of_one_series_does_not_stop_the_others(
    given, translate, north, sent, tmp_path, capsys
):
    """All are written, with background there; the command ends with what was left out, also when it is repeated."""
    refuse(north, 1)
    for jobs in ([3, 3, 3], []):
        assert translate(*given) == ExitCode.LEFT_OUT
        said = " ".join(capsys.readouterr().err.split())
        assert (
            f"{given[1]}: 1 of 3 items were refused, and are background (2): its latent is no noise" in said
        )
        assert sent() == jobs
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*")}
    assert found == {f"{name}/series-1{more}" for name in "abc" for more in ("", ".json")}


def test_a_series_of_which_every_slice_is_refused_does_not_stop_the_others(
    given, translate, north, sent, tmp_path, capsys
):
    """A volume of nothing but background is none, also where refused slices become background."""
    refuse(north, 1, 3, items=(0, 1, 2))
    assert translate(*given) == ExitCode.JOB_FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert "b: 3 of 3 planes were not translated (1, 2, 3): every one was refused" in said
    assert sent() == [3, 3, 3]
    assert not (tmp_path / "out" / "b" / "series-1").exists()
    assert translate(*given, "--skip-bad") == ExitCode.LEFT_OUT
    assert "left out: 1 of 3 files" in capsys.readouterr().err


def test_damaged_files_are_found_before_anything_is_sent(given, translate, sent, tmp_path, capsys):
    """A volume, a slice and a plain file; where they are skipped, the others are translated."""
    bad, torn, cut = tmp_path / "bad.nii", tmp_path / "torn.png", sorted(given[1].iterdir())[1]
    bad.write_bytes((NIFTI / "anatomical.nii").read_bytes()[:5000])
    torn.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-200])
    assert translate(*given, bad, torn) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "3 of 6 files" in said
    assert all(path.name in said for path in (bad, torn, cut))
    assert "--skip-bad" in said
    assert sent() == []
    for jobs in ([3, 2, 3], []):
        assert translate(*given, bad, torn, "--skip-bad") == ExitCode.LEFT_OUT
        assert cut.name in capsys.readouterr().err
        assert sent() == jobs
    assert len(list((tmp_path / "out" / "b" / "series-1").iterdir())) == 2


def test_a_missing_package_is_named_once(given, translate, sent, monkeypatch, tmp_path, capsys):
    """With the command that installs it; what needs it can be left out."""
    maps = [write_map(tmp_path / name, SMOOTH) for name in ("first.tif", "second.tif")]
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert translate(*given, *maps, "--tile", "none") == ExitCode.USAGE
    assert "pip install rasterio" in capsys.readouterr().err
    assert translate(*given, *maps, "--tile", "none", "--skip-bad") == ExitCode.LEFT_OUT
    assert "left out: 2 of 5 files" in capsys.readouterr().err
    assert sent() == [3, 3, 3]


OWN = "percentile:1,99@0:255"


@pytest.fixture
def head(tmp_path) -> Path:
    values = np.random.default_rng(0).integers(0, 1000, (9, 7, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "head.nii")
    return tmp_path / "head.nii"


def items(path: Path, *options: str) -> list[bytes]:
    return [item for study in open_paths([path], Options(*options)).studies for item in study.items()]


def options_of(out: Path, name: str = "head") -> dict[str, object]:
    return json.loads((out / f"{name}.json").read_text())["study"]["options"]


def test_a_volume_is_read_as_the_models_own_were(translate, north, head, tmp_path, capsys):
    """The record says which rule that is, and whose; the same command finds the result again."""
    trained(north, OWN, "coronal")
    assert translate(head) == 0
    assert inputs_of(north) == items(head, OWN, "coronal")
    assert options_of(tmp_path / "out") == {"intensity": OWN, "intensity_of": "model", "slices": "coronal"}
    assert "warning" not in capsys.readouterr().err
    assert translate(head, "--intensity", OWN) == 0
    assert "by an earlier run" in capsys.readouterr().out


def test_a_model_of_hounsfield_units_is_given_no_other_numbers(translate, north, tmp_path, capsys):
    trained(north, "hu")
    values = np.random.default_rng(0).integers(0, 2000, (3, 12, 10))
    write_series(tmp_path / "ct", values, header="CT_small.dcm", intercept=-1024.0)
    assert translate(tmp_path / "ct", "--intensity", "percentile:1,99") == ExitCode.USAGE
    assert "trained in Hounsfield units" in capsys.readouterr().err
    assert not north.script.seen("SubmitJob")


@pytest.mark.parametrize("stage", ["origin", "reader", "assemble", "payload"])
def test_whatever_a_reader_raises_ends_its_file_alone(stage, translate, north, tmp_path, monkeypatch, capsys):
    """By its name and the exception's type, without its words: they may hold what the file holds."""
    north.script.pictures = True
    for number in range(3):
        content = np.random.default_rng(number).integers(0, 255, (8, 8, 4)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), tmp_path / f"{number}.nii")
        (tmp_path / f"{number}.png").write_bytes(encode_png(content[..., :1]))
    bad = tmp_path / ("1.png" if stage == "payload" else "1.nii")

    def broken(real):
        def reader(given, *more, **how):
            if getattr(getattr(given, "origin", given), "given", given) == bad:
                raise IndexError("Doe^John")
            return real(given, *more, **how)

        return reader

    if stage == "assemble":
        monkeypatch.setattr(NiftiStudy, "assemble", broken(NiftiStudy.assemble))
    elif stage == "payload":
        monkeypatch.setattr(client_files, "payload", broken(client_files.payload))
    else:
        name = "origin" if stage == "origin" else "read"
        monkeypatch.setattr(Nifti, name, staticmethod(broken(getattr(READER, name))))
    given = [tmp_path / f"{number}.{kind}" for number in range(3) for kind in ("nii", "png")]
    assert translate(*given, "--skip-bad") == ExitCode.LEFT_OUT
    said = capsys.readouterr().err
    assert f"{bad}: unexpected IndexError  [INTERNAL]" in said
    assert "Doe" not in said
    assert "DDIB_DEBUG=1" in said
    assert len(list((tmp_path / "out").glob("*.json"))) == 5
    assert translate(*given) == ExitCode.INTERNAL
    assert f"{bad}: unexpected IndexError" in capsys.readouterr().err
