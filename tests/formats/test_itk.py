"""MetaImage and NRRD: there and back by slices, where they were in space, with values exactly theirs."""

import zlib

import nrrd
import numpy as np
import pytest

from ddib_fed.data.study import StudyResults
from ddib_fed.errors import ImageTooLarge, ImageUnreadable
from ddib_fed.formats.itk import read_header
from tests.formats.echoes import HOUNSFIELD, echo, only, require_pixels_alone, results

VALUES = np.arange(720, dtype=np.int16).reshape(8, 9, 10, order="F")
OBLIQUE = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])  # by rows, a direction each
SPACING, OFFSET = (0.9, 1.1, 3.0), (-10.0, 20.5, 30.25)
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.diag([-1, -1, 1]) @ (OBLIQUE * np.array(SPACING)[:, None]).T
AFFINE[:3, 3] = -10.0 * -1, -20.5, 30.25


def header_of(shape=VALUES.shape, *, big=False, deflated=False, data="LOCAL"):
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {big}\n"
        f"CompressedData = {deflated}\nTransformMatrix = {' '.join(map(str, OBLIQUE.ravel()))}\n"
        f"Offset = {' '.join(map(str, OFFSET))}\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = LAI\n"
        f"ElementSpacing = 0.9 1.1 3\nPatientName = Ada\nDimSize = {' '.join(map(str, shape))}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {data}\n"
    ).encode()


def metaimage(raw, *, deflated=False, **said):
    return header_of(deflated=deflated, **said) + (zlib.compress(raw) if deflated else raw)


def meta(folder, *, big=False, deflated=False, beside=False):
    raw = VALUES.astype(">i2" if big else "<i2").tobytes(order="F")
    if not beside:
        (folder / "scan.mha").write_bytes(metaimage(raw, big=big, deflated=deflated))
        return folder / "scan.mha"
    (folder / "scan.mhd").write_bytes(header_of(big=big, deflated=deflated, data="scan.raw"))
    (folder / "scan.raw").write_bytes(zlib.compress(raw) if deflated else raw)
    return folder / "scan.mhd"


def output(folder, study, translated):
    (name,) = study.origin.outputs
    folder.mkdir()
    (folder / name).write_bytes(study.assemble(translated).files[name])
    return folder / name


def values_of(path):
    """The values of a file of ours by another reader than ours where there is one: pynrrd's."""
    if path.suffix == ".nrrd":
        return nrrd.read(path)[0]
    header, content = read_header(path), path.read_bytes()
    return np.frombuffer(zlib.decompress(content[header.skip :]), header.dtype).reshape(
        header.shape, order="F"
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_a_metaimage_comes_back_where_it_was(big, deflated, beside, tmp_path):
    """Its directions are the rows of TransformMatrix, in left, posterior and superior; one file, whatever came in."""
    path = meta(tmp_path, big=big, deflated=deflated, beside=beside)
    study = only(path, intensity="values")
    require_pixels_alone(study)
    np.testing.assert_allclose(study.geometry.affine, AFFINE, atol=1e-12)
    made = output(tmp_path / "out", study, echo(study, scale=HOUNSFIELD))
    assert made.name == "scan.mha"
    np.testing.assert_array_equal(values_of(made), VALUES)
    np.testing.assert_array_equal(read_header(made).affine, study.geometry.affine)
    assert b"SYNTHETIC south.example/relief" in made.read_bytes()
    assert b"Ada" not in made.read_bytes()


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
@pytest.mark.parametrize("detached", [False, True])
def test_an_nrrd_comes_back_where_it_was(encoding, space, detached, tmp_path):
    signs = {"le": (-1, -1, 1), "ri": (1, 1, 1), "LA": (-1, 1, 1)}[space[:2]]
    steps = OBLIQUE * np.array(SPACING)[:, None]
    given = {
        "space": space,
        "space directions": steps,
        "space origin": OFFSET,
        "encoding": encoding,
        "name": "Ada",
    }
    path = tmp_path / ("scan.nhdr" if detached else "scan.nrrd")
    nrrd.write(str(path), VALUES, given)
    study = only(path, intensity="values")
    np.testing.assert_allclose(study.geometry.affine[:3, :3], np.diag(signs) @ steps.T)
    np.testing.assert_allclose(study.geometry.affine[:3, 3], np.multiply(signs, OFFSET))
    made = output(tmp_path / "out", study, echo(study, scale=HOUNSFIELD))
    values, header = nrrd.read(made)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_allclose(header["space directions"], steps)
    np.testing.assert_allclose(header["space origin"], OFFSET)
    assert header["space"] == space
    assert header["synthetic"].startswith("SYNTHETIC south.example/relief")
    assert "name" not in header


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_colours_of_a_result_lie_beside_each_other(suffix, tmp_path):
    """The axis of a target's colours is the file's fastest, and has no place in space."""
    study = only(meta(tmp_path), intensity="values")
    if suffix == ".nrrd":
        space = {"space": "LPS", "space directions": OBLIQUE, "space origin": OFFSET}
        nrrd.write(str(tmp_path / "scan.nrrd"), VALUES, space)
        study = only(tmp_path / "scan.nrrd", intensity="values")
    colours = np.stack([VALUES, VALUES + 1, VALUES + 2], axis=-1)
    (tmp_path / f"out{suffix}").write_bytes(
        study.encoded(colours[:, :, :, None], echo(study, scale=HOUNSFIELD))
    )
    if suffix == ".nrrd":
        values, header = nrrd.read(tmp_path / "out.nrrd")
        assert np.isnan(header["space directions"][0]).all()
    else:
        content = (tmp_path / "out.mha").read_bytes()
        raw = zlib.decompress(content[content.index(b"LOCAL\n") + 6 :])
        values = np.frombuffer(raw, "<i2").reshape(3, *VALUES.shape, order="F")
        assert b"ElementNumberOfChannels = 3" in content
    np.testing.assert_array_equal(np.moveaxis(values, 0, -1), colours)


def test_a_slice_comes_back_where_it_was(tmp_path):
    values = np.arange(72, dtype=np.uint8).reshape(8, 9)
    steps = np.array([[0.5, 0, 0], [0, 0, 2.0]])
    given = {"space": "LPS", "space directions": steps, "space origin": OFFSET}
    nrrd.write(str(tmp_path / "slice.nrrd"), values, given)
    study = only(tmp_path / "slice.nrrd", intensity="values")
    assert study.plane == "coronal"
    made, header = nrrd.read(output(tmp_path / "out", study, echo(study)))
    np.testing.assert_array_equal(made, values)
    np.testing.assert_array_equal(header["space directions"], steps)


def test_slices_are_cut_by_where_they_lie(tmp_path):
    """The first item of coronal slices is the most posterior, with its rows from superior to inferior."""
    values = np.zeros((8, 9, 10), np.uint8)
    values[:, :, :] = np.arange(10) * 20
    for name, space in (("ras", "right-anterior-superior"), ("lps", "left-posterior-superior")):
        path = tmp_path / f"{name}.nrrd"
        nrrd.write(
            str(path), values, {"space": space, "space directions": np.eye(3), "space origin": (0, 0, 0)}
        )
        study = only(path, intensity="values", slices="coronal")
        np.testing.assert_array_equal(study.pixels.numbers[0, :, 0, 0], np.arange(10)[::-1] * 20)


def test_a_refused_slice_is_0_in_the_mask(tmp_path):
    study = only(meta(tmp_path), intensity="values")
    translated = results(study, scale=HOUNSFIELD)
    translated[1] = None
    files = study.assemble(StudyResults.of(translated)).files
    assert set(files) == {"scan.mha", "scan.mask.mha"}
    (tmp_path / "mask.mha").write_bytes(files["scan.mask.mha"])
    there = values_of(tmp_path / "mask.mha")
    assert (there.reshape(-1, 10, order="F").mean(axis=0) == 0).sum() == 1


def test_a_header_reads_no_file_but_the_one_beside_it(tmp_path):
    """Else the values of any file of this machine would leave as a picture."""
    (tmp_path / "below").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(1440))
    (tmp_path / "below" / "scan.mhd").write_bytes(header_of(data="../secret.raw"))
    with pytest.raises(ImageUnreadable, match=r"'\.\./secret\.raw', which is no single file beside it"):
        only(tmp_path / "below" / "scan.mhd")
    (tmp_path / "scan.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 8 9 10\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        "encoding: raw\nendian: little\ndata file: /etc/hostname\n"
    )
    with pytest.raises(ImageUnreadable, match="no single file beside it"):
        only(tmp_path / "scan.nhdr")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("DimSize = 8 9 10", "DimSize = 8 9 11"), "1584 bytes of values"),
        (("DimSize = 8 9 10", "DimSize = 8 9"), "3 numbers where 2 belong"),
        (("MET_SHORT", "MET_OTHER"), "MET_OTHER"),
        (("ElementSpacing", "ElementNumberOfChannels = 3\nElementSpacing"), "3 numbers at each place"),
        (("0.8 0.6 0.0", "0.0 0.0 0.0"), "no orientation"),
        (("NDims", "no line\nNDims"), "no line of a MetaImage header"),
    ],
)
def test_a_wrong_metaimage_is_named(change, said, tmp_path):
    path = meta(tmp_path)
    path.write_bytes(path.read_bytes().replace(*(part.encode() for part in change)))
    with pytest.raises(ImageUnreadable, match=said) as caught:
        only(path)
    assert str(path) in caught.value.detail
    assert caught.value.hint


def test_values_are_as_many_as_the_header_says(tmp_path):
    """Fewer are refused; of more, the first are read, and that is said. None are unpacked that nobody asked for."""
    header = header_of(deflated=True)
    path = tmp_path / "scan.mha"
    path.write_bytes(header + zlib.compress(VALUES.tobytes(order="F") + bytes(1 << 28)))
    study = only(path, intensity="values")
    np.testing.assert_array_equal(study.geometry.restored(study.pixels.numbers, study.plane), VALUES)
    (warning,) = study.warnings
    assert warning.startswith(f"{path}: it holds more values than its header says")
    path.write_bytes(header + zlib.compress(bytes(1000)))
    with pytest.raises(ImageUnreadable, match="1440 bytes of values, the file holds 1000"):
        only(path)
    path.write_bytes(header.replace(b"8 9 10", b"8000 9000 10000") + zlib.compress(bytes(9)))
    with pytest.raises(ImageTooLarge):
        only(path)


def test_an_nrrd_without_a_space_is_asked_for_one(tmp_path):
    nrrd.write(str(tmp_path / "scan.nrrd"), VALUES, {"spacings": [1, 1, 2]})
    with pytest.raises(ImageUnreadable, match="does not say where its axes point"):
        only(tmp_path / "scan.nrrd")
