"""NIfTI volumes that nibabel carries: there and back by slices, with their affine and orientation."""

import gzip

import nibabel
import numpy as np
import pytest

from ddib_fed.data.study import Grid, StudyResults
from ddib_fed.errors import ImageUnreadable
from tests.formats.echoes import HOUNSFIELD, NIFTI, echo, only, require_pixels_alone, results


def output(tmp_path, study, translated):
    (name,) = study.origin.outputs
    path = tmp_path / name
    path.write_bytes(study.assemble(translated).files[name])
    return nibabel.load(path)


@pytest.mark.parametrize(
    ("name", "plane"),
    [
        ("anatomical.nii", "axial"),
        ("anatomical.nii", "coronal"),
        ("anatomical.nii", "sagittal"),
        ("standard.nii.gz", "coronal"),
        ("functional.nii", "axial"),
        ("example_nifti2.nii.gz", "axial"),
    ],
)
def test_a_volume_comes_back_where_it_was(name, plane, tmp_path):
    """Each voxel has the number of its value, in the same place of the file; affine, codes, spacing and units stay."""
    given = nibabel.load(NIFTI / name)
    values = np.asarray(given.dataobj).astype(np.float64)
    study = only(NIFTI / name, slices=plane, intensity="percentile:0.5,99.5")
    require_pixels_alone(study)
    made = output(tmp_path, study, echo(study))
    black, white = np.percentile(values, (0.5, 99.5))
    expected = np.rint(((values - black) / (white - black)).clip(0, 1) * 255)
    assert np.abs(np.asarray(made.dataobj) - expected).max() <= 1
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-5)
    np.testing.assert_allclose(made.header.get_zooms(), given.header.get_zooms(), rtol=1e-5)
    assert made.header.get_xyzt_units() == given.header.get_xyzt_units()
    assert nibabel.aff2axcodes(made.affine) == nibabel.aff2axcodes(given.affine)
    assert type(made) is type(given)


TURNED = np.array([[0.0, -2, 0, 30], [2, 0, 0, -20], [0, 0, -3, 5], [0, 0, 0, 1]])
"""Left-handed, which a quaternion says by a sign of its own."""
SHEARED = np.array([[2.0, 0.3, 0, -10], [0, 2, 0, -20], [0, 0.1, 3, 40], [0, 0, 0, 1]])


@pytest.mark.parametrize(("qform", "sform"), [(1, 4), (1, 0), (0, 2)])
def test_both_places_of_a_volume_stay_as_they_were(qform, sform, tmp_path):
    """Scanner by its quaternion and template by its matrix: each keeps its own, with the code that says which it is."""
    image = nibabel.Nifti1Image(np.arange(720, dtype=np.int16).reshape(8, 9, 10), None)
    image.set_qform(TURNED, code=qform)
    image.set_sform(SHEARED, code=sform)
    image.header["pixdim"][4] = 7
    nibabel.save(image, tmp_path / "scan.nii")
    given = nibabel.load(tmp_path / "scan.nii")
    assert (int(given.header["qform_code"]), int(given.header["sform_code"])) == (qform, sform)
    study = only(tmp_path / "scan.nii", intensity="values")
    (tmp_path / "out").mkdir()
    made = output(tmp_path / "out", study, echo(study, scale=(1.0, 0.0, 16, 0.0, 4095.0)))
    for form in ("qform", "sform"):
        (affine, code), (kept, kept_code) = (getattr(i, f"get_{form}")(coded=True) for i in (given, made))
        assert kept_code == code
        if code:
            np.testing.assert_array_equal(kept, affine)
    np.testing.assert_array_equal(made.affine, given.affine)
    np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(given.dataobj))


def test_a_refused_slice_is_background_and_0_in_the_mask(tmp_path):
    """Here air, at its place in a file that counts slices downwards; all else is there."""
    values = np.arange(720, dtype=np.int16).reshape(8, 9, 10)
    nibabel.save(nibabel.Nifti1Image(values, TURNED), tmp_path / "scan.nii.gz")
    study = only(tmp_path / "scan.nii.gz", intensity="values")
    assert {*study.assemble(echo(study)).files} == {"scan.nii.gz"}
    translated = results(study, scale=HOUNSFIELD)
    translated[1], there = None, np.arange(10) != 8
    made = study.assemble(StudyResults.of(translated)).files
    for name, kept, lost in (("scan.nii.gz", values, -1024), ("scan.mask.nii.gz", np.ones_like(values), 0)):
        volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(made[name]))
        np.testing.assert_array_equal(np.asarray(volume.dataobj), np.where(there, kept, lost))
        np.testing.assert_array_equal(volume.affine, TURNED)


def test_the_header_is_a_new_one(tmp_path):
    """Nothing of the input's description, and a mark of what it is."""
    image = nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4))
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = "Ada", "Lovelace", "1815"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Ada Lovelace"))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    study = only(tmp_path / "scan.nii.gz")
    content = gzip.decompress(study.assemble(echo(study)).files["scan.nii.gz"])
    assert b"SYNTHETIC south.example/relief" in content
    assert b"Ada" not in content
    assert b"Lovelace" not in content


def test_what_is_no_volume_of_numbers_is_refused_with_a_hint(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), tmp_path / "one.nii")
    with pytest.raises(ImageUnreadable, match="complex64 of 3 axes") as caught:
        only(tmp_path / "one.nii")
    assert "as volumes" in caught.value.hint


def test_a_volume_without_an_orientation_is_named(tmp_path):
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    image.header.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), code=1)
    image.header.set_qform(None, code=0)
    (tmp_path / "flat axis.nii").write_bytes(image.header.binaryblock + bytes(4) + bytes(64))
    with pytest.raises(ImageUnreadable, match=r"flat axis\.nii: its affine has no orientation"):
        only(tmp_path / "flat axis.nii")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("volume", [None, Grid((10, 9, 8))])
def test_a_value_that_is_not_finite_is_no_data_and_said(value, volume, tmp_path):
    """It becomes background, neither white nor the least value by which all others are scaled."""
    values = np.arange(720, dtype=np.float32).reshape(8, 9, 10)
    values[4, 4, 2:5] = value
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii")
    study = only(tmp_path / "scan.nii", volume=volume)
    (warning,) = study.warnings
    assert warning.startswith(f"{tmp_path / 'scan.nii'}: 3 of its values are NaN or infinite")
    numbers = study.pixels.numbers.reshape(10, 9, 8)[:, ::-1].T
    black, white = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    expected = np.rint(((values - black) / (white - black)).clip(0, 1) * 255)
    np.testing.assert_allclose(numbers, np.where(np.isfinite(values), expected, 0), atol=1)
    assert study.pixels.intensity["not_finite"] == 3
