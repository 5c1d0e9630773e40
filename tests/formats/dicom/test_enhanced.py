"""Enhanced files, whose frames are slices, and compressed ones: read as plain slices are, and written as they were."""

import io
from copy import deepcopy

import imagecodecs
import numpy as np
import pydicom
import pytest

from ddib_fed.data.study import Options
from ddib_fed.errors import ImageUnreadable
from ddib_fed.formats import dicom
from ddib_fed.formats.dicom import affine_of, readable_syntaxes
from ddib_fed.recognition import open_paths
from tests.formats.dicom.files import write_enhanced, write_series
from tests.formats.echoes import DICOM, echo, only, require_pixels_alone

VALUES = np.random.default_rng(0).integers(0, 2000, (5, 12, 10))
LARGE = b"\xff\xc3\0\x0b\x08\xf0\0\xf0\0\1\1\x11\0"


def datasets(made):
    return [pydicom.dcmread(io.BytesIO(content)) for content in made.files.values()]


def test_frames_are_slices_in_their_order_in_space(tmp_path):
    """The same pixels and the same place as of the same slices in plain files."""
    write_enhanced(tmp_path / "mr" / "enhanced.dcm", VALUES)
    write_series(tmp_path / "plain", VALUES)
    study, plain = only(tmp_path / "mr", intensity="values"), only(tmp_path / "plain", intensity="values")
    np.testing.assert_array_equal(study.pixels.numbers[..., 0], VALUES)
    np.testing.assert_allclose(affine_of(study.series.headers), affine_of(plain.series.headers))
    assert len(study.origin.inputs) == 1
    require_pixels_alone(study)


def test_each_frame_has_its_own_rescale(tmp_path):
    """Slope and intercept of a frame's own functional group, and Hounsfield units only where all say so."""
    rescale = [(float(at + 1), -100.0 * at) for at in range(5)]
    path = write_enhanced(tmp_path / "ct.dcm", VALUES, header="CT_small.dcm", rescale=rescale)
    found = only(path, intensity="percentile:0,100@0:65535").pixels
    expected = np.stack([VALUES[at] * (5 - at) - 100.0 * (4 - at) for at in range(5)])
    scaled = np.rint((expected - expected.min()) / np.ptp(expected) * 65535)
    np.testing.assert_allclose(found.numbers[..., 0], scaled, atol=1)
    with pytest.raises(Exception, match="rescale type US"):
        only(path, intensity="hu")


@pytest.mark.parametrize("header", ["MR_small.dcm", "CT_small.dcm"])
def test_the_result_of_an_enhanced_file_is_one(header, tmp_path):
    """Of its class, with its frames in their order and places, each with its source; nothing of the acquisition."""
    path = write_enhanced(tmp_path / "series" / "enhanced.dcm", VALUES, header=header)
    study = only(tmp_path / "series", intensity="percentile:0,100@0:65535")
    (made,) = datasets(study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 65535.0))))
    source = pydicom.dcmread(path)
    assert (made.SOPClassUID, made.NumberOfFrames) == (source.SOPClassUID, 5)
    assert list(made.ImageType) == ["DERIVED", "PRIMARY", "VOLUME", "SYNTHETIC"]
    order = np.argsort(np.argsort(source.pixel_array.astype(int).reshape(5, -1).sum(1)))
    np.testing.assert_array_equal(
        np.argsort(np.argsort(made.pixel_array.astype(int).reshape(5, -1).sum(1))), order
    )
    assert "MREchoSequence" not in made.SharedFunctionalGroupsSequence[0]
    for at, (own, theirs) in enumerate(
        zip(made.PerFrameFunctionalGroupsSequence, source.PerFrameFunctionalGroupsSequence, strict=True)
    ):
        assert own.PlanePositionSequence == theirs.PlanePositionSequence
        (reference,) = own.DerivationImageSequence[0].SourceImageSequence
        assert (reference.ReferencedSOPInstanceUID, reference.ReferencedFrameNumber) == (
            source.SOPInstanceUID,
            at + 1,
        )
        # The first dimension was the echo time.
        values = own.FrameContentSequence[0].DimensionIndexValues
        assert values == theirs.FrameContentSequence[0].DimensionIndexValues[1]
    (index,) = made.DimensionIndexSequence
    assert index.DimensionIndexPointer == pydicom.tag.Tag("InStackPositionNumber")


def test_the_echoes_of_an_enhanced_file_are_files_of_their_own(tmp_path):
    """Each of its frames alone, with percentiles and identities of its own, and its echo time, which tells them apart;
    frames of another kind are left out by name.
    """
    path = write_enhanced(tmp_path / "mr" / "enhanced.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    del dataset.SharedFunctionalGroupsSequence[0].MREchoSequence
    for at, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.MREchoSequence = [pydicom.Dataset()]
        frame.MREchoSequence[0].EffectiveEchoTime = 17.0 if at < 2 else 90.0
    looks = dataset.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence
    del dataset.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence
    for at, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        frame.MRImageFrameTypeSequence = deepcopy(looks)
        frame.MRImageFrameTypeSequence[0].ComplexImageComponent = "PHASE" if at == 4 else "MAGNITUDE"
    dataset.save_as(path)
    found = open_paths([path], Options(intensity="percentile:0,100"))
    assert found.ignored == {"DICOM phase, real or imaginary picture": 1}
    assert [origin.name for origin in found.studies.origins] == ["enhanced-echo1", "enhanced-echo2"]
    made = [datasets(study.assemble(echo(study)))[0] for study in found.studies]
    assert [each.NumberOfFrames for each in made] == [2, 2]
    assert len({each.SOPInstanceUID for each in made}) == 2
    assert [
        {frame.MREchoSequence[0].EffectiveEchoTime for frame in each.PerFrameFunctionalGroupsSequence}
        for each in made
    ] == [{17.0}, {90.0}]
    assert all((each.pixel_array.min(), each.pixel_array.max()) == (0, 255) for each in made)


def test_a_result_in_colours_is_a_plain_series(tmp_path):
    """There is no enhanced CT in colours; each file then has its frame as its source, and an identity of its own."""
    write_enhanced(tmp_path / "series" / "enhanced.dcm", VALUES)
    study = only(tmp_path / "series")
    made = datasets(study.assemble(echo(study, change=lambda numbers: numbers.repeat(3, axis=-1))))
    assert {each.PhotometricInterpretation for each in made} == {"RGB"}
    assert len({each.SOPInstanceUID for each in made}) == 5
    assert {each.SourceImageSequence[0].ReferencedFrameNumber for each in made} == {1, 2, 3, 4, 5}


def test_an_enhanced_file_without_its_groups_is_refused(tmp_path):
    """Nothing says where its frames are; nor is one with fewer groups than frames read in part."""
    path = write_enhanced(tmp_path / "enhanced.dcm", VALUES)
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[2]
    dataset.save_as(path)
    with pytest.raises(ImageUnreadable, match="5 frames, and functional groups of 4"):
        only(path)
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(path)
    with pytest.raises(ImageUnreadable, match="no functional groups"):
        only(path)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_bigendian", "MR_small_implicit"],
)  # fmt: skip
def test_compressed_pictures_have_the_values_of_plain_ones(name):
    plain = only(DICOM / "MR_small.dcm", intensity="values").pixels.numbers
    np.testing.assert_array_equal(only(DICOM / f"{name}.dcm", intensity="values").pixels.numbers, plain)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_jpeg_lossless_keeps_values_of_each_depth(bits, predictor, tmp_path):
    """Signed ones, by each predictor."""
    values = np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, (12, 10))
    raw = (values & (1 << bits) - 1).astype(np.uint8 if bits == 8 else np.uint16)
    frame = imagecodecs.jpeg8_encode(raw, lossless=True, predictor=predictor, bitspersample=bits)
    path = compressed(tmp_path, pydicom.uid.JPEGLossless, frame, bits, 12, 10)
    np.testing.assert_array_equal(only(path, intensity="values").pixels.numbers[0, :, :, 0], values)


def test_signed_jpeg_ls_of_twelve_bits_keeps_its_values(tmp_path):
    frame = bytes.fromhex(
        "ffd8fff7000b0c0005002801011100"
        "ffda0008010100000000000000001ffd8104108421111111112492492492495554000000003fe3555555555555ff7f019fff7fff7ff813020821084222222222492492492492aaa8000000007fcfff7fff7ffeffd9"
    )
    path = compressed(tmp_path, pydicom.uid.JPEGLSLossless, frame, 12, 5, 40)
    values = only(path, intensity="values").pixels.numbers[0, :, :, 0]
    np.testing.assert_array_equal(values, np.repeat([[-2048], [-7], [0], [5], [2047]], 40, axis=1))


@pytest.mark.parametrize(
    ("name", "damaged", "said"),
    [
        ("MR_small_jpeg_ls_lossless", lambda frame: frame[: len(frame) // 2], "is cut off"),
        ("SC_rgb_jpeg_gdcm", lambda frame: frame[: len(frame) // 2], "is cut off"),
        ("SC_rgb_jpeg_gdcm", lambda frame: frame + b"\xff\xda\0\x08\1\1\0\1\0\0" * 64, "more than 64 scans"),
        ("SC_rgb_jpeg_gdcm", lambda frame: b"\xff\xd8\0" + LARGE + frame[2:], "states no size"),
        ("SC_rgb_jpeg_gdcm", lambda frame: b"\xff\xd8\xff\xd0" + LARGE + frame[2:], "states no size"),
    ],
)
def test_a_frame_that_is_cut_off_or_takes_much_is_refused(name, damaged, said, tmp_path):
    dataset = pydicom.dcmread(DICOM / f"{name}.dcm")
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([damaged(frame)])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageUnreadable, match=said):
        only(tmp_path / "a.dcm")


def compressed(folder, syntax, frame, bits, rows, columns):
    (path,) = write_series(folder, np.zeros((1, rows, columns), int))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 1
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path)
    return path


def test_what_is_taken_over_the_network_can_be_read():
    names = {syntax.name.partition(",")[0].partition(" (")[0] for syntax in readable_syntaxes()}
    assert {"Explicit VR Little Endian", "Deflated Explicit VR Little Endian", "RLE Lossless", "JPEG Lossless",
            "JPEG-LS Lossless Image Compression", "JPEG 2000 Image Compression"} <= names  # fmt: skip


def test_a_deflated_file_is_read_unless_it_becomes_too_large(tmp_path, monkeypatch):
    (path,) = write_series(tmp_path / "mr", VALUES[:1])
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "deflated.dcm")
    np.testing.assert_array_equal(
        only(tmp_path / "deflated.dcm", intensity="values").pixels.numbers[..., 0], VALUES[:1]
    )
    monkeypatch.setattr(dicom, "MAX_INFLATED", 1000)
    with pytest.raises(ImageUnreadable, match="is deflated, and inflates to more than"):
        only(tmp_path / "deflated.dcm")
