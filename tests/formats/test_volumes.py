"""Whole volumes on the grid of a model, and back on their own: places, spacing, orientation, and what does not fit."""

import gzip
import io
import subprocess
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pydicom
import pytest

from ddib_fed.data.pictures import decode_volume
from ddib_fed.data.study import Grid, StudyResults
from ddib_fed.errors import ImageUnreadable, InputError
from tests.formats.dicom.files import write_series
from tests.formats.echoes import HOUNSFIELD, echo, only, results

GRID = Grid((28, 32, 24), (2.0, 1.5, 1.8))
"""Depth, height and width."""


def turned(degrees: float) -> np.ndarray:
    """A rotation about an oblique axis."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def blob(world: np.ndarray) -> np.ndarray:
    """A smooth head of values from 0 to 1000 that is alike in no two directions, at places (..., 3) in mm."""
    away = (world - [2.0, -1.0, 3.0]) / [9.0, 11.0, 10.0]
    return 1000 * np.exp(-np.square(away).sum(-1)) * (1 + 0.4 * np.tanh(world @ [0.1, 0.07, -0.05]))


def head(path: Path, orientation: str, degrees: float, spacing: tuple[float, ...]) -> nibabel.Nifti1Image:
    """A NIfTI of the blob about the centre of space, whose axes go to these directions in this order, then turned."""
    plain = nibabel.orientations.axcodes2ornt(orientation)
    affine, shape = np.eye(4), np.array([round(60 / each) for each in spacing])
    for at, (axis, sign) in enumerate(plain):
        affine[:3, at] = turned(degrees)[:, int(axis)] * sign * spacing[at]
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    places = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    )
    image = nibabel.Nifti1Image(np.rint(blob(places)).astype(np.int16), affine)
    nibabel.save(image, path)
    return nibabel.load(path)


@pytest.mark.parametrize(
    ("orientation", "degrees", "spacing"),
    [("RAS", 0, (1.0, 1.0, 1.0)), ("LPI", 0, (1.3, 1.3, 3.0)), ("PSR", 12, (1.0, 2.5, 0.8)), ("IRP", -9, (3, 1, 1))],
)  # fmt: skip
def test_a_volume_of_any_orientation_lies_where_it_lay(orientation, degrees, spacing, tmp_path):
    """Each voxel that is sent shows its place in the head; each that comes back lies where the volume had it."""
    given = head(tmp_path / "head.nii.gz", orientation, degrees, spacing)
    study = only(tmp_path / "head.nii.gz", intensity="values", volume=GRID)
    (item,) = study.items()
    sent = decode_volume(item)[..., 0].astype(float)
    assert sent.shape == GRID.sides
    steps = np.stack(np.meshgrid(*map(np.arange, GRID.sides), indexing="ij"), -1)
    steps = (steps - (np.array(GRID.sides) - 1) / 2) * GRID.spacing
    # Up, backwards, to the right.
    truth = blob((steps * [1, -1, 1])[..., ::-1] @ turned(degrees).T)
    assert np.abs(sent - truth).max() < 50
    assert np.abs(sent - truth).mean() < 3
    made = nibabel.Nifti1Image.from_bytes(
        gzip.decompress(study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 4095.0))).files["head.nii.gz"])
    )
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
    assert (made.shape, nibabel.aff2axcodes(made.affine)) == (given.shape, nibabel.aff2axcodes(given.affine))
    gap = np.abs(np.asarray(made.dataobj).astype(float) - np.asarray(given.dataobj))
    assert gap.max() < 100
    assert gap.mean() < 3


def test_where_nothing_is_resampled_every_voxel_comes_back_as_it_went(tmp_path: Path) -> None:
    """Even and odd sides, padded or cut; without a spacing of the model nothing is resampled either."""
    values = np.zeros((21, 30, 25), np.int16)
    values[2:18, 3:28, 1:20] = np.random.default_rng(0).integers(100, 4000, (16, 25, 19))
    image = nibabel.Nifti1Image(values, np.diag([1.8, 1.5, 2.0, 1]))
    for name in ("one.nii", "two.nii"):
        nibabel.save(image, tmp_path / name)
    for name, grid in (("one.nii", Grid((28, 32, 20), GRID.spacing)), ("two.nii", Grid((28, 31, 20)))):
        study = only(tmp_path / name, intensity="values", volume=grid)
        assert study.warnings == ()
        made = study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 4095.0)))
        np.testing.assert_array_equal(
            np.asarray(nibabel.Nifti1Image.from_bytes(made.files[name]).dataobj), values
        )
        fit = made.report["volumes"]
        assert (fit["size"], fit["model_size"], fit["resampled"]) == (
            [25, 30, 21],
            [*grid.sides],
            [False] * 3,
        )
        assert fit["padded"] == [3, grid.sides[1] - 30, 0]
        assert fit["spacing_mm"] == pytest.approx([2.0, 1.5, 1.8])


def test_each_time_is_an_item_and_one_that_was_refused_is_background(tmp_path: Path) -> None:
    values = np.zeros((12, 14, 10, 4), np.int16)
    values[3:9, 3:9, 3:9] = np.random.default_rng(0).integers(100, 1000, (6, 6, 6, 4))
    values[..., 2] = 0
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, 2, 2, 1])), tmp_path / "times.nii")
    study = only(tmp_path / "times.nii", intensity="values", volume=Grid((10, 16, 12), (2.0, 2.0, 2.0)))
    assert (study.planes, study.sent) == (4, (0, 1, 3))
    translated = results(study, scale=HOUNSFIELD)
    translated[1] = None
    made = study.assemble(StudyResults.of(translated))
    volume, mask = (np.asarray(nibabel.Nifti1Image.from_bytes(made.files[n]).dataobj) for n in made.files)
    np.testing.assert_array_equal(volume[..., [0, 3]], values[..., [0, 3]])
    assert (volume[..., [1, 2]] == -1024).all()
    assert [mask[..., at].all() for at in range(4)] == [True, False, False, True]
    assert not mask[..., [1, 2]].any()
    assert made.said == ("what was not translated is 0 in times.mask.nii",)


def test_what_the_model_does_not_see_is_never_silently_lost(tmp_path: Path) -> None:
    """More than a little is refused with both sizes in mm; a little is said before, and is 0 in the mask."""
    values = np.zeros((40, 40, 40), np.uint8)
    values[4:36, 10:30, 10:30] = 200
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "head.nii")
    with pytest.raises(
        ImageUnreadable, match=r"25% of what .* measures 40 x 40 x 40 mm.* 40 x 40 x 24 mm"
    ) as caught:
        only(tmp_path / "head.nii", volume=Grid((20, 40, 24), (2.0, 1.0, 1.0)))
    assert caught.value.hint.startswith('size=20x40x40, or [model] scene = "20x40x40" at both nodes')
    assert not only(tmp_path / "head.nii", volume=Grid((20, 40, 40), (2.0, 1.0, 1.0))).warnings
    values[0] = 0
    values[36, 15, 15:30] = 200
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "head.nii")
    study = only(tmp_path / "head.nii", volume=Grid((40, 40, 32)))
    (said,) = study.warnings
    assert said.startswith(
        f"{tmp_path / 'head.nii'}: 0.12% of what it shows lies outside the model's field of view"
    )
    made = study.assemble(echo(study))
    mask = np.asarray(nibabel.Nifti1Image.from_bytes(made.files["head.mask.nii"]).dataobj)
    np.testing.assert_array_equal(mask[:, 20, 20], [0] * 4 + [1] * 32 + [0] * 4)


def test_a_slice_is_no_volume(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8), np.uint8), np.eye(4)), tmp_path / "slice.nii")
    (path,) = write_series(tmp_path / "one", np.ones((1, 12, 10), int))
    for given in (tmp_path / "slice.nii", path):
        with pytest.raises(ImageUnreadable, match="a single slice"):
            only(given, volume=GRID)


CORONAL = np.array([[1.0, 0, 0], [0, 0, -1]])


def placed(paths: list[Path], rows: np.ndarray) -> None:
    """Let slices lie along these directions of a row and of a column, 3 mm apart."""
    normal = np.cross(*rows)
    for at, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient = [*rows[0], *rows[1]]
        dataset.ImagePositionPatient = [*(np.array([-10.0, -20.0, 30.0]) + 3.0 * at * normal)]
        dataset.save_as(path)


@pytest.mark.parametrize("coronal", [False, True])
def test_a_series_becomes_a_volume_and_a_series_again(coronal: bool, tmp_path: Path) -> None:
    """Of axial slices from the feet up, and of coronal ones from the front backwards: depth goes up in both."""
    values = np.random.default_rng(0).integers(1, 2000, (10, 12, 14))
    paths = write_series(tmp_path / "mr", values)
    placed(paths, CORONAL if coronal else np.eye(3)[:2])
    sides = (12, 10, 14) if coronal else (10, 12, 14)
    spacing = (1.5, 3.0, 1.5) if coronal else (3.0, 1.5, 1.5)
    study = only(tmp_path / "mr", intensity="values", volume=Grid(sides, spacing))
    (item,) = study.items()
    sent = decode_volume(item)[..., 0]
    # DICOM counts columns to the left of the person, rows of axial slices to the back, those of coronal ones downwards.
    expected = values.transpose(1, 0, 2)[::-1] if coronal else values
    np.testing.assert_array_equal(sent, expected[..., ::-1])
    files = study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 4095.0))).files
    slices = [pydicom.dcmread(io.BytesIO(files[name])) for name in sorted(files)]
    for at, made in enumerate(sorted(slices, key=lambda each: each.InstanceNumber)):
        np.testing.assert_array_equal(made.pixel_array, values[at])
        assert made.ImagePositionPatient == pydicom.dcmread(paths[at]).ImagePositionPatient


@pytest.mark.parametrize("degrees", [0, 17])
def test_another_converter_finds_the_geometry_of_the_source(degrees: float, tmp_path: Path) -> None:
    """dcm2niix makes NIfTI of one affine and one size from the series and from its translation, axial or oblique."""
    rows = (turned(degrees) @ np.eye(3)[:2].T).T
    placed(write_series(tmp_path / "mr", np.random.default_rng(0).integers(1, 2000, (10, 12, 14))), rows)
    study = only(tmp_path / "mr", intensity="values", volume=Grid((14, 16, 18), (2.5, 1.5, 1.5)))
    (tmp_path / "made").mkdir()
    for name, content in study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 4095.0))).files.items():
        (tmp_path / "made" / Path(name).name).write_bytes(content)
    source, made = (converted(tmp_path / name) for name in ("mr", "made"))
    assert source.shape == made.shape == (14, 12, 10)
    np.testing.assert_allclose(made.affine, source.affine, atol=1e-4)


def test_a_round_head_of_unlike_rows_and_columns_stays_round(tmp_path: Path) -> None:
    """Rows are 2 mm apart and columns 1 mm; outside of a CT that is smaller than the model's volumes there is air."""
    rows, columns = np.mgrid[0:20, 0:40]
    disc = np.hypot(2.0 * (rows - 9.5), columns - 19.5) < 12
    values = np.where(disc, 1064, 24)[None].repeat(6, axis=0)
    write_series(tmp_path / "ct", values, header="CT_small.dcm", intercept=-1024, PixelSpacing=[2.0, 1.0])
    study = only(tmp_path / "ct", volume=Grid((6, 48, 48), (3.0, 1.0, 1.0)))
    (item,) = study.items()
    sent = decode_volume(item)[3, ..., 0]
    inside = sent > -400
    assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 1
    assert (sent[[0, -1]] == -1000).all()
    assert (sent[:, [0, -1]] == -1000).all()
    smaller = only(tmp_path / "ct", volume=Grid((6, 32, 32), (3.0, 1.0, 1.0)))
    contents = smaller.assemble(echo(smaller, scale=(1.0, -2000.0, 16, -1000.0, 3000.0))).files.values()
    made = [pydicom.dcmread(io.BytesIO(content)) for content in contents]
    back = np.stack([pydicom.pixels.apply_modality_lut(each.pixel_array, each) for each in made])
    assert (back[:, [0, -1]] == -1000).all()
    assert (back.min(), back.max()) == (-1000, 40)


def converted(folder: Path) -> nibabel.Nifti1Image:
    """What dcm2niix makes of the one series in a folder, which turns only what was acquired in 3D."""
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "found", "-o", folder, folder]
    subprocess.run(command, check=True, capture_output=True)
    return nibabel.as_closest_canonical(nibabel.load(folder / "found.nii"))


def test_a_series_that_does_not_say_where_it_lies_is_no_volume(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 2000, (4, 12, 14))
    write_series(tmp_path / "times", values, ImagePositionPatient=None)
    with pytest.raises(ImageUnreadable, match="no two at one place"):
        only(tmp_path / "times", volume=GRID)


def test_a_range_beyond_15_bits_makes_no_content_of_the_background(tmp_path: Path) -> None:
    """Metal in a CT: noise of one unit about the body is not what must lie in the model's field of view."""
    values = np.full((60, 60, 60), -2000, np.int16)
    values[::2] += 1
    values[20:40, 20:40, 20:40] = 31_000
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "metal.nii.gz")
    study = only(tmp_path / "metal.nii.gz", intensity="values", volume=Grid((32, 32, 32), (1.0, 1.0, 1.0)))
    assert study.pixels.outside == 0.0


def test_a_result_of_another_size_is_not_taken(tmp_path: Path) -> None:
    head(tmp_path / "head.nii.gz", "RAS", 0, (2, 2, 2))
    study = only(tmp_path / "head.nii.gz", volume=GRID)
    with pytest.raises(InputError, match=r"\(27, 32, 24\) voxels came"):
        study.assemble(echo(study, change=lambda numbers: numbers[1:]))


def test_voxels_that_become_larger_are_means(tmp_path: Path) -> None:
    """A pattern as fine as the model's voxels becomes grey, whatever it is where these voxels have their middle."""
    fine = 300 * np.isin(np.indices((32, 32, 32)) % 4, (1, 2)).sum(0)
    nibabel.save(nibabel.Nifti1Image(fine.astype(np.int16), np.eye(4)), tmp_path / "fine.nii")
    study = only(tmp_path / "fine.nii", intensity="values", volume=Grid((8, 8, 8), (4.0, 4.0, 4.0)))
    (item,) = study.items()
    np.testing.assert_allclose(decode_volume(item)[1:-1, 1:-1, 1:-1], fine.mean(), atol=100)
