"""A study's items and results as files, and its output with its provenance."""

from __future__ import annotations

import errno
import json

import nibabel
import numpy as np
import pytest

from ddib_fed.engine.record import Translation
from ddib_fed.errors import AlreadyExists, InputError, ItemNotFound, UsageError
from ddib_fed.files import write_file
from ddib_fed.formats import parts as parts_module
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.parts import check_outputs, finished_study, read_results, write_items, write_outputs
from ddib_fed.formats.study import Options, Translated
from tests.formats.dicom.files import write_series
from tests.formats.echoes import ASKED, NIFTI, only, results

VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


@pytest.fixture
def study():
    return only(NIFTI / "anatomical.nii")


def finished(origin, out, *, asked=ASKED):
    return finished_study(origin, out, asked=asked)


def put(parts, found):
    """Results as the ordinary path writes them."""
    parts.results.mkdir()
    for item, result in zip(parts.items, found, strict=True):
        if result is not None:
            (parts.results / f"{item.stem}.png").write_bytes(result[0])
            (parts.results / f"{item.stem}.json").write_bytes(result[1].to_json())


def test_results_are_put_together_from_their_files(study, tmp_path):
    """The volume, and a record that any reader of records reads, with a section of its own."""
    parts = write_items(study, tmp_path)
    assert [path.name for path in parts.items][:2] == ["0001.png", "0002.png"]
    assert {path.stat().st_mode & 0o777 for path in parts.items} == {0o600}
    put(parts, results(study))
    written = write_outputs(study, read_results(parts, ASKED), tmp_path, force=False)
    assert [path.name for path in written.files] == ["anatomical.nii"]
    record = Translation.read(written.record)
    assert record is not None
    assert (record.input, record.samples, record.wire_bytes) == ("anatomical.nii", 25, 2500)
    assert record.files["translation"].file == "anatomical.nii"
    section = json.loads(written.record.read_text())["study"]
    assert section["kind"] == "NIfTI volume"
    assert section["intensity"]["inverse"].startswith("value = ")
    assert section["flicker"]["ratio"] == pytest.approx(1, abs=0.01)
    assert [item["plane"] for item in section["items"]] == list(range(25))
    assert section["items"][3]["latent_sha256"] != section["items"][4]["latent_sha256"]
    parts.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anatomical.json", "anatomical.nii"]


def test_a_result_of_another_item_does_not_count(study, tmp_path):
    """Nor one that was changed, nor one without a record."""
    parts = write_items(study, tmp_path)
    found = results(study)
    put(parts, [found[1], found[0], *found[2:]])
    (parts.results / "0005.png").write_bytes(found[6][0])
    (parts.results / "0008.json").unlink()
    assert [at for at, result in enumerate(read_results(parts, ASKED)) if result is None] == [0, 1, 4, 7]


def test_a_result_for_another_request_does_not_count(study, tmp_path):
    """Of another target, or by other settings."""
    parts = write_items(study, tmp_path)
    found = results(study)
    found[2] = found[2]._replace(record=found[2].record.with_(asked_sha256="b6" * 32))
    put(parts, found)
    assert [at for at, result in enumerate(read_results(parts, ASKED)) if result is None] == [2]


def test_nothing_is_overwritten_unless_asked(study, tmp_path):
    check_outputs(study, tmp_path, force=False)
    (tmp_path / "anatomical.json").write_text("{}")
    with pytest.raises(AlreadyExists):
        check_outputs(study, tmp_path, force=False)
    check_outputs(study, tmp_path, force=True)


@pytest.mark.parametrize("of_files", [False, True])
def test_the_input_is_never_replaced(of_files, tmp_path):
    """--out beside it, also with --force, and when the folder's files were named one by one."""
    paths = write_series(tmp_path / "ct", VALUES, header="CT_small.dcm")
    (study,) = open_paths(paths if of_files else [tmp_path / "ct"], Options()).studies
    with pytest.raises(UsageError, match="replace the input"):
        check_outputs(study, tmp_path, force=True)


def test_a_series_of_fewer_slices_leaves_none_of_the_earlier(tmp_path):
    """Only files that an earlier run wrote are removed."""
    paths = write_series(tmp_path / "mr", VALUES)
    out = tmp_path / "out"
    written = write_outputs(only(tmp_path / "mr"), results(only(tmp_path / "mr")), out, force=False)
    (out / "mr" / "series-1" / "notes.txt").write_text("mine")
    assert len(written.files) == 4
    paths[3].unlink()
    write_outputs(only(tmp_path / "mr"), results(only(tmp_path / "mr")), out, force=True)
    assert sorted(path.name for path in (out / "mr" / "series-1").iterdir()) == [
        "0001.dcm",
        "0002.dcm",
        "0003.dcm",
        "notes.txt",
    ]


def test_results_of_two_models_make_no_volume(study, tmp_path):
    """Nor do none at all; the error names the volume."""
    found = results(study)
    found[2] = results(study, scale=(1.0, 0.0, 16, 0.0, 4095.0))[2]
    with pytest.raises(InputError, match="different models"):
        Translated.of(found)
    with pytest.raises(InputError, match=r"anatomical\.nii: the planes are translations to different models"):
        write_outputs(study, found, tmp_path, force=False)
    with pytest.raises(ItemNotFound):
        Translated.of([None, None])


def test_output_of_the_same_request_is_known_again(tmp_path):
    """By the record of a volume below a folder, without its pixels; not for another request, option, input or file."""
    given = tmp_path / "in" / "ward" / "scan.nii"
    given.parent.mkdir(parents=True)
    given.write_bytes((NIFTI / "anatomical.nii").read_bytes())
    (unread,) = open_paths([tmp_path / "in"], Options()).studies.unread
    study, out = unread.reader(unread.origin), tmp_path / "out"
    assert finished(unread.origin, out) is None
    written = write_outputs(study, results(study), out, force=False)
    again = finished(unread.origin, out)
    assert again is not None
    assert (again.files, again.kind, again.items) == ((out / "ward" / "scan.nii",), "NIfTI volume", 25)
    assert again.files == written.files
    assert finished(unread.origin, out, asked="b6" * 32) is None
    (other,) = open_paths([tmp_path / "in"], Options(slices="sagittal")).studies.unread
    assert finished(other.origin, out) is None
    given.write_bytes(given.read_bytes() + b"0")
    assert finished(unread.origin, out) is None
    given.write_bytes((NIFTI / "anatomical.nii").read_bytes())
    (out / "ward" / "scan.nii").write_bytes(b"changed")
    assert finished(unread.origin, out) is None


def test_output_with_refused_planes_is_finished(study, tmp_path):
    """The same node would refuse them again; a mask beside it says which they are."""
    found = results(study)
    found[1] = None
    write_outputs(study, found, tmp_path, force=False)
    assert finished(study.origin, tmp_path) is not None
    mask = nibabel.load(tmp_path / study.origin.beside[0])
    canonical = np.asarray(nibabel.as_closest_canonical(mask).dataobj)
    assert mask.shape == nibabel.load(tmp_path / study.outputs[0]).shape
    assert [int(plane.max()) for plane in np.moveaxis(canonical, 2, 0)][study.sent[0] : study.sent[3]] == [
        1,
        0,
        1,
    ]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_the_earlier_output_as_it_was(tmp_path, monkeypatch):
    """With --force; once there is room the same takes its place, and of the old one no slice is left."""
    paths = write_series(tmp_path / "mr", VALUES)
    out, written = tmp_path / "out", []
    write_outputs(only(tmp_path / "mr"), results(only(tmp_path / "mr")), out, force=False)
    before = contents(out)
    paths[3].unlink()
    study = only(tmp_path / "mr")

    def full(path, data, **how):
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_file(path, data, **how)

    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "write_file", full)
        with pytest.raises(OSError, match="No space"):
            write_outputs(study, results(study), out, force=True)
    assert {path: content for path, content in contents(out).items() if ".parts" not in str(path)} == before
    write_outputs(study, results(study), out, force=True)
    after = contents(out)
    assert [path.name for path in sorted(after)] == ["0001.dcm", "0002.dcm", "0003.dcm", "series-1.json"]
    assert not set(after.values()) & set(before.values())


def test_an_output_that_was_interrupted_in_its_place_needs_no_force(tmp_path, monkeypatch):
    """The process ended between the slices and the record; a folder of somebody else still needs it."""
    write_series(tmp_path / "mr", VALUES)
    study, out, synced = only(tmp_path / "mr"), tmp_path / "out", []

    def end(folder):
        synced.append(folder)
        if len(synced) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "sync_folder", end)
        with pytest.raises(KeyboardInterrupt):
            write_outputs(study, results(study), out, force=False)
    assert (out / "mr" / "series-1" / "0004.dcm").exists()
    assert not (out / "mr" / "series-1.json").exists()
    write_outputs(study, results(study), out, force=False)
    assert finished(study.origin, out) is not None
    with pytest.raises(AlreadyExists):
        check_outputs(study, out, force=False)
