"""The derived series: new identities, marks of what it is, the place of the source, and the right pixels."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest

from tests.formats.dicom.files import write_series
from tests.formats.echoes import HOUNSFIELD, echo, only

VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


def datasets(made):
    return [pydicom.dcmread(io.BytesIO(content)) for content in made.files.values()]


@pytest.fixture
def ct(tmp_path):
    write_series(tmp_path / "ct", VALUES, header="CT_small.dcm", intercept=-1024)
    return only(tmp_path / "ct")


def test_every_file_says_what_it_is(ct):
    """Synthetic, derived, from which picture, by what."""
    for source, made in zip(
        ct.series.headers, datasets(ct.assemble(echo(ct, scale=HOUNSFIELD))), strict=True
    ):
        assert made[0x0008001C].value == "YES"
        assert list(made.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"]
        assert "south.example/relief" in made.DerivationDescription
        (reference,) = made.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        acquired, maker = made.ContributingEquipmentSequence
        assert (acquired.Manufacturer, maker.Manufacturer) == ("GE MEDICAL SYSTEMS", "ddib-fed")
        assert made.SeriesDescription == "SYNTHETIC south.example/relief"
        assert made.SeriesNumber == source.SeriesNumber + 1000


def test_identities_are_new_and_the_same_again(ct):
    """One series, a UID for each picture; study, person and frame of reference stay, private tags do not."""
    first, again = (datasets(ct.assemble(echo(ct, scale=HOUNSFIELD))) for _ in range(2))
    sources = ct.series.headers
    uids = [made.SOPInstanceUID for made in first]
    assert (
        uids
        == [made.SOPInstanceUID for made in again]
        == [made.file_meta.MediaStorageSOPInstanceUID for made in first]
    )
    assert len(set(uids) | {source.SOPInstanceUID for source in sources}) == 8
    assert {made.SeriesInstanceUID for made in first}.isdisjoint({sources[0].SeriesInstanceUID})
    assert len({made.SeriesInstanceUID for made in first}) == 1
    for keyword in (
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "ImagePositionPatient",
        "PixelSpacing",
    ):
        assert first[1][keyword].value == sources[1][keyword].value
    assert any(element.tag.is_private for element in sources[0])
    assert not any(element.tag.is_private for made in first for element in made)


def test_hounsfield_units_come_back(ct):
    """A target whose range begins like air gives HU; another one says that its units are its own."""
    (made, *_) = datasets(ct.assemble(echo(ct, scale=HOUNSFIELD)))
    np.testing.assert_array_equal(pydicom.pixels.apply_modality_lut(made.pixel_array, made), VALUES[0] - 1024)
    assert made.RescaleType == "HU"
    assert (made.WindowCenter, made.WindowWidth) == (1023.5, 4095)
    (other, *_) = datasets(ct.assemble(echo(ct, change=lambda numbers: numbers / 10 + 110)))
    assert other.RescaleType == "US"


OF_THE_ACQUISITION = {
    "EchoTime": 12, "RepetitionTime": 600, "InversionTime": 900, "FlipAngle": 15, "ScanningSequence": "IR",
    "SequenceVariant": "SK", "SequenceName": "tfl3d1", "ProtocolName": "t1_mprage", "MagneticFieldStrength": 3,
    "ImagingFrequency": 123.2, "EchoTrainLength": 8, "ScanOptions": "FS", "MRAcquisitionType": "3D",
    "ContrastBolusAgent": "Gadovist", "DiffusionBValue": 1000.0, "KVP": 120, "ConvolutionKernel": "B30f",
    "XRayTubeCurrent": 200, "Exposure": 100, "ReceiveCoilName": "head", "PixelBandwidth": 130,
    "ImageComments": "T1 after contrast", "Units": "BQML", "ImageType": ["DERIVED", "PRIMARY", "ADC"],
}  # fmt: skip
RESEARCH = {"ScanningSequence": "RM", "SequenceVariant": "NONE"}
"""The standard asks for a value, and these are its own for a sequence that is none of those that it lists."""


@pytest.mark.parametrize("header", ["MR_small.dcm", "CT_small.dcm"])
def test_how_the_source_was_acquired_is_not_said_of_the_result(header, tmp_path):
    """A T2 that a model made has no echo time, and no contrast agent; who and where it shows stays."""
    write_series(tmp_path / "mr", VALUES, header=header, BodyPartExamined="BRAIN", **OF_THE_ACQUISITION)
    study = only(tmp_path / "mr", intensity="values")
    (made, *_) = datasets(study.assemble(echo(study)))
    source = study.series.headers[0]
    assert source.EchoTime == 12
    expected = RESEARCH if header == "MR_small.dcm" else {}
    assert list(made.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    said = {keyword: made.get(keyword) for keyword in {*OF_THE_ACQUISITION} - {"ImageType"}}
    assert {keyword: value for keyword, value in said.items() if value} == expected
    assert made.SOPClassUID == source.SOPClassUID
    for keyword in (
        "PatientID",
        "StudyDate",
        "Modality",
        "BodyPartExamined",
        "SliceThickness",
        "AcquisitionNumber",
    ):
        assert made[keyword].value == source[keyword].value
