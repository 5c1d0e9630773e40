"""Series of real files: in their order in space, in the units of their modality, by pixels alone."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import ImageUnreadable, InputError
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.study import Options
from tests.formats.dicom.files import words_of, write_series
from tests.formats.echoes import DICOM, only, require_pixels_alone

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
        ({"RescaleIntercept": None}, "has no rescale slope and intercept"),
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


def test_monochrome1_is_turned_alike_in_all_slices(tmp_path):
    """About the middle of all values, not of each slice's own: one that is darker stays so."""
    values = VALUES.copy()
    values[1] //= 2
    write_series(tmp_path / "cr", values, PhotometricInterpretation="MONOCHROME1")
    numbers = only(tmp_path / "cr", intensity="values").pixels.numbers[..., 0]
    np.testing.assert_array_equal(numbers, values.max() + values.min() - values)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rtplan.dcm", "no DICOM pictures"),
        ("MR_truncated.dcm", "MR_truncated"),
        ("examples_ybr_color.dcm", "30 frames"),
        ("image_dfl.dcm", "is deflated"),
        ("liver_1frame.dcm", "not translated"),
        ("MR_small_jpeg_ls_lossless.dcm", "cannot be read"),
    ],
)
def test_what_cannot_be_translated_is_named_with_a_hint(name, says):
    """Plans, torn files, films, masks, and compressions that need another package."""
    with pytest.raises(ImageUnreadable, match=says) as caught:
        only(DICOM / name)
    assert caught.value.hint


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


def test_no_value_of_the_header_is_in_an_item(tmp_path):
    """Texts, and the bytes of the header from its first tag on."""
    (path, *_) = write_series(tmp_path / "series", VALUES)
    words = words_of(path)
    assert {"CompressedSamples^MR1", "4MR1"} & words
    assert len(words) > 15
    for item in only(tmp_path / "series", intensity="values").items():
        assert not any(word.encode() in item for word in words)
