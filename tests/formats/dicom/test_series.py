"""Series of real files: which files they have, their names, order, units and pixels; and the derived series."""

import io
import shutil
from collections import Counter

import numpy as np
import pydicom
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.data.study import Options, StudyResults
from ddib_fed.errors import ImageUnreadable, InputError, JobFailed
from ddib_fed.names import __version__
from ddib_fed.recognition import open_paths
from tests.formats.dicom.files import write_contrasts, write_series
from tests.formats.echoes import DICOM, HOUNSFIELD, echo, only, require_pixels_alone, results

THREE_SLICES = np.random.default_rng(0).integers(0, 2000, (3, 12, 10))
CUT = (132, 400, 1100, 3000)
"""Bytes of `CT_small.dcm` that end before its number of rows, in all parts of its header."""


def names(*paths):
    return sorted(origin.name for origin in open_paths(paths, Options()).studies.origins)


@pytest.mark.parametrize("size", CUT)
def test_a_slice_that_was_cut_is_named_and_not_passed_over(size, tmp_path):
    """pydicom reads it without an error, as if it ended there; the whole slice beside it is a series."""
    content = (DICOM / "CT_small.dcm").read_bytes()
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "whole.dcm").write_bytes(content)
    (tmp_path / "ct" / "cut.dcm").write_bytes(content[:size])
    bad = []
    found = open_paths([tmp_path / "ct"], Options(), bad=bad)
    assert [path.name for path, _ in bad] == ["cut.dcm"]
    assert "cut.dcm" in bad[0][1].detail
    assert [len(origin.inputs) for origin in found.studies.origins] == [1]
    with pytest.raises(ImageUnreadable, match=r"cut\.dcm"):
        open_paths([tmp_path / "ct"], Options())


def test_a_copy_of_a_slice_counts_once(tmp_path):
    """A folder that was copied into itself is one series of the same slices, and the copies are counted."""
    write_series(tmp_path / "mr", THREE_SLICES)
    first = open_paths([tmp_path / "mr"], Options()).studies[0]
    shutil.copytree(tmp_path / "mr", tmp_path / "mr" / "again")
    found = open_paths([tmp_path / "mr"], Options())
    (study,) = found.studies
    assert list(study.items()) == list(first.items())
    assert study.origin.inputs == first.origin.inputs
    assert found.ignored == Counter({"copies of other DICOM files": 3})


def test_two_different_slices_of_one_identity_are_refused(tmp_path):
    """Nobody knows which is right, so both are named and neither is used."""
    paths = write_series(tmp_path / "mr", THREE_SLICES)
    changed = pydicom.dcmread(paths[1])
    changed.PixelData = changed.PixelData[::-1]
    changed.save_as(tmp_path / "mr" / "changed.dcm")
    with pytest.raises(InputError, match="the same SOP Instance UID") as caught:
        open_paths([tmp_path / "mr"], Options())
    assert paths[1].name in caught.value.detail
    assert "changed.dcm" in caught.value.detail
    bad = []
    (study,) = open_paths([tmp_path / "mr"], Options(), bad=bad).studies
    assert {path.name for path, _ in bad} == {paths[1].name, "changed.dcm"}
    assert study.origin.inputs == (paths[2], paths[0])


def test_a_name_does_not_depend_on_what_else_is_there(tmp_path):
    """Patients come and go; each keeps the name of its folder, and the folder of a patient gives the same one."""
    scans = tmp_path / "scans"
    write_series(scans / "p2", THREE_SLICES)
    assert names(scans) == ["scans/p2/series-1"]
    write_series(scans / "p3" / "T1", THREE_SLICES, SeriesNumber=7)
    assert names(scans) == ["scans/p2/series-1", "scans/p3/T1/series-7"]
    write_series(scans / "p1", THREE_SLICES)
    assert names(scans) == ["scans/p1/series-1", "scans/p2/series-1", "scans/p3/T1/series-7"]
    assert names(scans / "p1", scans / "p3") == ["p1/series-1", "p3/T1/series-7"]
    assert names(*scans.glob("p[12]/*")) == ["p1/series-1", "p2/series-1"]
    (path, *_) = (scans / "p1").iterdir()
    assert names(path) == [path.name]


def test_two_series_of_one_number_are_told_apart(tmp_path):
    for path in write_series(tmp_path / "p1", THREE_SLICES):
        path.rename(path.with_name(f"first-{path.name}"))
    write_series(tmp_path / "p1", THREE_SLICES)
    both = open_paths([tmp_path / "p1"], Options()).studies.origins
    assert len({origin.name for origin in both}) == 2
    assert all(origin.name.startswith("p1/series-1-") for origin in both)
    assert all(origin.called == f"{tmp_path / 'p1'}: {origin.name}" for origin in both)


VALUES = np.random.default_rng(0).integers(0, 2000, (5, 12, 10))


def test_slices_are_in_their_order_in_space(tmp_path):
    """Not in that of their names; a folder, its files and a file in it of another kind make no difference."""
    paths = write_series(tmp_path / "series", VALUES)
    (tmp_path / "series" / "notes.txt").write_text("no DICOM")
    study = only(tmp_path / "series", intensity="values")
    np.testing.assert_array_equal(study.pixels.numbers[..., 0], VALUES)
    require_pixels_alone(study)
    (of_files,) = open_paths(paths, Options(intensity="values")).studies
    assert list(of_files.items()) == list(study.items())
    assert (of_files.name, study.name) == ("series/series-1", "series/series-1")


def test_ct_is_in_hounsfield_units(tmp_path):
    """Stored numbers by slope and intercept; a window makes bytes of them."""
    write_series(tmp_path / "ct", VALUES, header="CT_small.dcm", intercept=-1024)
    study = only(tmp_path / "ct")
    items = [decode_image(item).pixels for item in study.items()]
    assert items[0].dtype == np.int16
    np.testing.assert_array_equal(np.stack(items)[..., 0], VALUES - 1024)
    (windowed, *_) = only(tmp_path / "ct", intensity="window:40,400").items()
    expected = np.rint(((VALUES[0] - 1024 + 160) / 400).clip(0, 1) * 255)
    np.testing.assert_array_equal(decode_image(windowed).pixels[..., 0], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "has no rescale slope and intercept"),
        ({"RescaleType": "US"}, "has the rescale type US"),
    ],
)
def test_what_is_called_hounsfield_has_its_rescale(changes, says, tmp_path):
    """Otherwise the series is refused, also where some slices alone have none; other rules come with a warning."""
    write_series(tmp_path / "ct", VALUES, header="CT_small.dcm", **changes)
    for intensity in ("auto", "hu"):
        with pytest.raises(InputError, match=says) as caught:
            only(tmp_path / "ct", intensity=intensity)
    assert "--intensity percentile:0.5,99.5" in caught.value.hint
    (warning,) = (line for line in only(tmp_path / "ct", intensity="window:40,400").warnings if says in line)
    assert "no Hounsfield units" in warning
    assert only(tmp_path / "ct", intensity="values").kind == "DICOM series (CT without Hounsfield units)"
    if "RescaleType" not in changes:
        np.testing.assert_array_equal(
            only(tmp_path / "ct", intensity="values").pixels.numbers[..., 0], VALUES
        )
    (path, *_) = write_series(tmp_path / "ct", VALUES, header="CT_small.dcm", intercept=-1024)
    part = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            delattr(part, keyword)
        else:
            setattr(part, keyword, value)
    part.save_as(path)
    for intensity in ("auto", "window:40,400"):
        with pytest.raises(InputError, match=rf"1 of 5 slices .*{says}"):
            only(tmp_path / "ct", intensity=intensity)


@pytest.mark.parametrize(
    ("modality", "changes", "turned"),
    [
        ("CT", {"intercept": -1024.0}, False),
        ("PT", {"slope": 2.0}, False),
        ("MR", {}, False),
        ("CR", {"slope": 0.5, "intercept": 200.0, "RescaleType": "OD"}, False),
        ("CR", {}, True),
        ("DX", {"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "US"}, True),
    ],
)
def test_how_a_value_is_displayed_does_not_change_it(modality, changes, turned, tmp_path):
    """MONOCHROME1 says that the least is shown white; a film's grey levels alone have no other meaning, and are turned
    alike in all slices and series, about what their bits hold.
    """
    how = {"Modality": modality, "PhotometricInterpretation": "MONOCHROME1"}
    write_series(tmp_path / "series", VALUES, header="CT_small.dcm" if modality == "CT" else "MR_small.dcm",
                 BitsStored=12, **how, **changes)  # fmt: skip
    study = only(tmp_path / "series", intensity="hu" if modality == "CT" else "values")
    slope, intercept = changes.get("slope", 1), changes.get("intercept", 0)
    expected = 4095 - VALUES if turned else VALUES * slope + intercept
    np.testing.assert_array_equal(study.pixels.numbers[..., 0], expected)
    (made, *_) = datasets(study.assemble(echo(study, scale=HOUNSFIELD)))
    assert made.PhotometricInterpretation == "MONOCHROME2"
    assert (made.get("RescaleType") == "HU") == (modality == "CT")


@pytest.mark.parametrize(("vr", "stored"), [("SS", -2000), ("US", 65536 - 2000)])
def test_padding_of_signed_pixels_is_air(vr, stored, tmp_path):
    """Round the field of a CT, whose scanner may write the padding's value as unsigned."""
    values = VALUES - 1024
    values[:, :3] = -2000
    for path in write_series(tmp_path / "ct", values.astype("<i2").view("<u2"), header="CT_small.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PixelRepresentation = 1
        dataset.add_new("PixelPaddingValue", vr, stored)
        dataset.save_as(path)
    numbers = only(tmp_path / "ct", intensity="hu").pixels.numbers[..., 0]
    np.testing.assert_array_equal(numbers[:, 3:], values[:, 3:])
    assert (numbers[:, :3] == values[:, 3:].min()).all()


def test_slices_that_are_not_parallel_are_no_stack(tmp_path):
    """The person is warned, and they stay in the order of their numbers, not along a direction that is not theirs."""
    turned = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]]
    paths = write_series(tmp_path / "mr", THREE_SLICES)
    for path, direction in zip(paths, turned, strict=True):
        dataset = pydicom.dcmread(path)
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = (
            direction,
            [9, 9, -30 * dataset.InstanceNumber],
        )
        dataset.save_as(path)
    study = only(tmp_path / "mr", intensity="values")
    np.testing.assert_array_equal(study.pixels.numbers[..., 0], THREE_SLICES)
    assert any("the slices are not parallel" in warning for warning in study.warnings)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rtplan.dcm", "no DICOM pictures"),
        ("MR_truncated.dcm", "MR_truncated"),
        ("examples_ybr_color.dcm", "30 frames"),
        ("badVR.dcm", "invalid literal"),
        ("liver_1frame.dcm", "functional groups of 3"),
        ("JPEGLSNearLossless_16.dcm", "no UID of its class, its series or its own"),
        ("JPEG-lossy.dcm", "cannot be read"),
    ],
)
def test_what_cannot_be_translated_is_named_with_a_hint(name, says):
    """Plans, torn files, films, masks, and compressions that no free decoder reads."""
    with pytest.raises(ImageUnreadable, match=says) as caught:
        only(DICOM / name)
    assert caught.value.hint


def test_slices_with_and_without_a_rescale_are_no_series(tmp_path):
    """Their values are in no common units; nor are those of PET without any."""
    paths = write_series(tmp_path / "mr", VALUES, slope=2.0)
    dataset = pydicom.dcmread(paths[1])
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.save_as(paths[1])
    with pytest.raises(InputError, match="slices have no rescale slope"):
        only(tmp_path / "mr")
    write_series(tmp_path / "pet", VALUES, Modality="PT")
    with pytest.raises(InputError, match="slices have no rescale slope"):
        only(tmp_path / "pet")
    write_series(tmp_path / "rescaled", VALUES, Modality="PT", slope=2.0)
    assert only(tmp_path / "rescaled").sent


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"BurnedInAnnotation": "YES"}, "says that pixels show text"),
        ({"Modality": "US"}, "often have burnt-in text"),
        ({"RecognizableVisualFeatures": "YES"}, "may be recognised"),
        ({"ImageOrientationPatient": None}, ""),
    ],
)
def test_a_person_is_warned_of_text_in_pixels(changes, says, tmp_path):
    """By the header's own word, and by modality where it says nothing."""
    write_series(tmp_path / "series", VALUES, **changes)
    warnings = only(tmp_path / "series").warnings
    assert any(says in warning for warning in warnings) if says else warnings == ()
    write_series(tmp_path / "clean", VALUES, Modality="US", BurnedInAnnotation="NO")
    assert only(tmp_path / "clean").warnings == ()


FOUR_SLICES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


def datasets(made):
    return [pydicom.dcmread(io.BytesIO(content)) for content in made.files.values()]


@pytest.fixture
def ct(tmp_path):
    versions = {"SoftwareVersions": ["15", "LX"]}
    write_series(tmp_path / "ct", FOUR_SLICES, header="CT_small.dcm", intercept=-1024, **versions)
    return only(tmp_path / "ct")


def test_every_file_says_what_it_is(ct):
    for source, made in zip(
        ct.series.headers, datasets(ct.assemble(echo(ct, scale=HOUNSFIELD))), strict=True
    ):
        assert made[0x0008001C].value == "YES"
        assert list(made.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"]
        assert "south.example/relief" in made.DerivationDescription
        assert [code.CodeValue for code in made.DerivationCodeSequence] == ["DDIB"]
        (reference,) = made.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        acquired, maker = made.ContributingEquipmentSequence
        assert (acquired.Manufacturer, maker.Manufacturer) == ("GE MEDICAL SYSTEMS", "ddib-fed")
        assert (acquired.SoftwareVersions, maker.SoftwareVersions) == (["15", "LX"], __version__)
        assert all(digest in maker.ContributionDescription for digest in ("ab" * 32, "cd" * 32))
        assert made.SeriesDescription == "SYNTHETIC south.example/relief"
        assert made.SeriesNumber == source.SeriesNumber + 1000


def test_a_doubtful_result_says_so(ct):
    """In a PACS nobody reads the record: the series' own words have it."""
    found = results(ct, scale=HOUNSFIELD)
    found[1] = found[1]._replace(record=found[1].record.with_(doubtful=True, doubts=("structure",)))
    for made in datasets(ct.assemble(StudyResults.of(found))):
        assert made.DerivationDescription.endswith("not for diagnosis; doubtful: structure")


def test_the_size_at_which_it_was_computed_is_said(ct):
    """In a PACS nobody reads the record: the words of a picture on the terminal, and the resolution in mm."""
    found = results(ct, scale=HOUNSFIELD)
    (made, *_) = datasets(ct.assemble(StudyResults.of(found)))
    assert "computed" not in made.DerivationDescription
    assert "SpatialResolution" not in made
    sizes = {"fitted_height": 6, "fitted_width": 5, "clipped": 700}
    found = [each._replace(record=each.record.with_(picture=sizes)) for each in found]
    for made in datasets(ct.assemble(StudyResults.of(found))):
        assert made.DerivationDescription.endswith(
            "not for diagnosis; was computed at 5 x 6 pixels, not at its own 10 x 12, and enlarged: 4 pixels became "
            "one; 2,800 values outside the range of the source's model were clipped"
        )
        assert (made.SpatialResolution, list(made.PixelSpacing)) == (3.0, [1.5, 1.5])


def test_another_rule_of_intensity_makes_other_identities(ct):
    """What it makes is another picture, and a PACS keeps both."""
    other = only(ct.origin.given, intensity="window:40,400")
    uids = [
        {made.SOPInstanceUID for made in datasets(study.assemble(echo(study, scale=HOUNSFIELD)))}
        for study in (ct, other)
    ]
    assert uids[0].isdisjoint(uids[1])


def test_identities_are_new_and_the_same_again(ct):
    """One series, a UID for each picture; study, person and frame of reference stay, private tags do not. They do not
    depend on the result, which may be drawn with other noise, so that a PACS replaces it.
    """
    first, again = (
        datasets(ct.assemble(echo(ct, scale=HOUNSFIELD, change=lambda numbers, k=k: numbers + k)))
        for k in (0, 9)
    )
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
    np.testing.assert_array_equal(
        pydicom.pixels.apply_modality_lut(made.pixel_array, made), FOUR_SLICES[0] - 1024
    )
    assert made.RescaleType == "HU"
    assert (made.WindowCenter, made.WindowWidth) == (40, 400)
    (other, *_) = datasets(ct.assemble(echo(ct, change=lambda numbers: numbers / 10 + 110)))
    assert other.RescaleType == "US"


def test_a_slice_without_a_result_is_air(tmp_path):
    """The low end of the target's range in Hounsfield units, whatever number stands for it."""
    values = FOUR_SLICES.copy()
    values[0] = 0
    write_series(tmp_path / "ct", values, header="CT_small.dcm", intercept=-1024)
    study = only(tmp_path / "ct")
    found = results(study, scale=(1.0, -2000.0, 16, -1000.0, 3000.0))
    found[1] = None
    assert study.sent == (1, 2, 3)
    made = datasets(study.assemble(StudyResults.of(found)))
    assert [pydicom.pixels.apply_modality_lut(each.pixel_array, each).max() > 0 for each in made] == [
        False, True, False, True,
    ]  # fmt: skip
    for each in (made[0], made[2]):
        assert (pydicom.pixels.apply_modality_lut(each.pixel_array, each) == -1000).all()


def test_results_in_different_ranges_make_no_series(ct):
    """One model was replaced in between: its numbers mean other Hounsfield units."""
    found = results(ct, scale=HOUNSFIELD)
    found[2] = found[2]._replace(record=found[2].record.with_(picture={"intercept": -2000.0}))
    with pytest.raises(JobFailed, match="was replaced while its planes were translated"):
        StudyResults.of(found)


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
    write_series(tmp_path / "mr", FOUR_SLICES, header=header, BodyPartExamined="BRAIN", **OF_THE_ACQUISITION)
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


@pytest.mark.parametrize(
    ("element", "malformed"),
    [
        (b"\x20\x00\x13\x00IS", b"\x20\x00\x13\x00ZZ"),
        (b"\x18\x00\x81\x00DS", b"\x18\x00\x81\x00ZZ"),
        (b"\x28\x00\x00\x01US\x02\x00", b"\x28\x00\x00\x01US\x01\x00"),
        (b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00SQ"),
    ],
)
def test_a_slice_of_a_malformed_value_is_named_and_the_others_are_read(element, malformed, tmp_path):
    """Whatever element it is in, and before anything is sent."""
    (path, *_) = write_series(tmp_path / "mr", FOUR_SLICES)
    content = path.read_bytes()
    assert content.count(element) == 1
    path.write_bytes(content.replace(element, malformed))
    bad = []
    (study,) = open_paths([tmp_path / "mr"], Options(), bad=bad).studies
    assert [each.name for each, _ in bad] == [path.name]
    assert len(study.sent) == 3


@pytest.mark.parametrize(
    ("contrasts", "expected"),
    [
        ([{"EchoNumbers": 1, "EchoTime": 12}, {"EchoNumbers": 2, "EchoTime": 90}], ["echo1", "echo2"]),
        ([{"EchoTime": 12}, {"EchoTime": 90}], ["echo1", "echo2"]),
        ([{"TemporalPositionIdentifier": n} for n in (2, 10, 11)], ["time1", "time2", "time3"]),
        ([{"TriggerTime": t, "InstanceNumber": 1} for t in (9.5, 120.0)], ["repeat1", "repeat2"]),
        ([{"AcquisitionTime": t} for t in ("100000", "100130")], ["repeat1", "repeat2"]),
        ([{"ImageType": ["ORIGINAL", "PRIMARY", kind]} for kind in ("M", "WATER")], ["type1", "type2"]),
        ([{"DiffusionBValue": b} for b in (0.0, 1000.0)], ["b1", "b2"]),
    ],
)
def test_each_contrast_of_a_series_is_a_study_of_its_own(contrasts, expected, tmp_path):
    """With a name that is the same again, percentiles of its own values, and a series of its own in the PACS."""
    found = open_paths([write_contrasts(tmp_path / "mr", FOUR_SLICES, *contrasts)], Options()).studies
    assert [origin.name for origin in found.origins] == [f"mr/series-1-{name}" for name in expected]
    assert [{path.name[0] for path in origin.inputs} for origin in found.origins] == [
        {str(n)} for n in range(1, len(contrasts) + 1)
    ]
    numbers = [study.pixels.numbers for study in found]
    assert all((each.min(), each.max()) == (0, 255) for each in numbers)
    for each in numbers[1:]:
        np.testing.assert_allclose(each, numbers[0], atol=1)
    made = [datasets(study.assemble(echo(study)))[0] for study in found]
    assert len({each.SeriesInstanceUID for each in made}) == len(contrasts)
    assert [each.SeriesDescription for each in made] == [
        f"SYNTHETIC {name} south.example/relief" for name in expected
    ]
    of_echoes = expected[0] == "echo1"
    assert [each.EchoTime for each in made] == ([12, 90] if of_echoes else [None] * len(made))
    for path in (tmp_path / "mr").glob("[!1]-*"):  # as if the others had come late
        path.unlink()
    early = only(tmp_path / "mr")
    assert datasets(early.assemble(echo(early)))[0].SOPInstanceUID == made[0].SOPInstanceUID


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SeriesDescription": ["T1", "TSE"]}, ("SYNTHETIC south.example/relief T1 TSE", 1001, 3.0)),
        ({"SeriesNumber": [3, 4]}, ("SYNTHETIC south.example/relief", 1003, 3.0)),
        ({"PixelSpacing": 1.5}, ("SYNTHETIC south.example/relief", 1001, None)),
    ],
)
def test_another_number_of_values_than_the_standard_has_loses_no_result(changes, said, tmp_path):
    """A backslash in a text makes two of it; of a spacing one value alone says nothing."""
    write_series(tmp_path / "mr", FOUR_SLICES, **changes)
    study, small = only(tmp_path / "mr"), {"fitted_height": 6, "fitted_width": 5}
    found = [each._replace(record=each.record.with_(picture=small)) for each in results(study)]
    for made in datasets(study.assemble(StudyResults.of(found))):
        assert (made.SeriesDescription, made.SeriesNumber, made.get("SpatialResolution")) == said


OF_NO_ANATOMY = [
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "header": "CT_small.dcm"}, "localizer"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "mosaic of slices"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen or protocol"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase, real or imaginary picture"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]}, "phase, real or imaginary picture"),
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour map"),
]


def test_an_image_type_of_one_word_is_no_other_kind(tmp_path):
    write_series(tmp_path / "mr", FOUR_SLICES, ImageType="ORIGINAL")
    assert only(tmp_path / "mr").sent == (0, 1, 2, 3)


@pytest.mark.parametrize(("looks", "called"), OF_NO_ANATOMY)
def test_what_is_no_slice_of_anatomy_is_named_and_left_out(looks, called, tmp_path):
    """Also in the series of its slices; alone it is refused, by what it is."""
    header = looks.get("header", "MR_small.dcm")
    write_series(tmp_path / "other", FOUR_SLICES[:2], **looks)
    with pytest.raises(ImageUnreadable, match=f"no DICOM pictures of anatomy: 2 DICOM {called}"):
        open_paths([tmp_path / "other"], Options())
    write_contrasts(tmp_path / "all", FOUR_SLICES, {}, looks, header=header)
    found = open_paths([tmp_path / "all"], Options())
    assert found.ignored == Counter({f"DICOM {called}": 4})
    assert [origin.name for origin in found.studies.origins] == ["all/series-1"]
    np.testing.assert_array_equal(
        found.studies[0].pixels.numbers, only_the_slices(tmp_path / "plain", header)
    )


def only_the_slices(folder, header):
    return only(write_contrasts(folder, FOUR_SLICES, {}, header=header)).pixels.numbers


def test_a_dicomdir_is_refused_and_its_folder_is_read():
    with pytest.raises(
        ImageUnreadable, match="DICOMDIR holds no DICOM pictures of anatomy: 1 DICOMDIR"
    ) as caught:
        open_paths([DICOM / "dicomdirtests" / "DICOMDIR"], Options())
    assert "for a DICOMDIR name its folder" in caught.value.hint
    assert len(open_paths([DICOM / "dicomdirtests" / "77654033"], Options()).studies) > 2
