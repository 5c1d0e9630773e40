"""Pictures and points are found, split and refused by name, before anything is trained."""

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    FileMissing,
    ImageUnreadable,
    InputError,
    KindMismatch,
    NotFinite,
    PictureMisfit,
    SettingsInvalid,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.manifest import DataNote
from ddib_fed.models.units import Normalisation
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.sources import (
    array_source,
    folder_source,
    normalisation,
    open_source,
    own_samples,
    spaced,
)
from tests.models.examples import manifest
from tests.training.examples import blobs

GOOD = blobs(12)
WIDE = np.zeros((12, 3, 8, 8), np.float32)
DTYPES = {"uint8": 1.0, "uint16": 257.0, "float32": 1 / 255}


@pytest.mark.parametrize(
    ("train", "held_out", "error"),
    [
        (GOOD[:4], GOOD[4:], InputError),
        (GOOD, GOOD[:2, :1], ShapeMismatch),
        (GOOD.astype(np.float64), GOOD, InputError),
        (WIDE + 3, WIDE, InputError),
        (WIDE + np.float32("nan"), WIDE, NotFinite),
    ],
)
def test_what_are_no_pictures_is_refused(train, held_out, error):
    with pytest.raises(error, match="mine"):
        array_source("mine", train, held_out)


def test_the_digest_names_pixels_and_labels():
    digests = {
        array_source("a", GOOD, GOOD[:1]).digest,
        array_source("b", GOOD, GOOD[:1]).digest,
        array_source("a", GOOD[::-1], GOOD[:1]).digest,
        array_source("a", GOOD, GOOD[:1], labels=[0] * 12, classes=("x",)).digest,
    }
    assert len(digests) == 3


def test_settings_that_do_not_fit_the_pictures_are_refused(small):
    plain = array_source("plain", GOOD, GOOD[:2])
    for change in ({"domain": "relief"}, {"size": 16}, {"classes": "folders"}):
        with pytest.raises(SettingsInvalid):
            open_source(small.model_copy(update=change), plain)
    with pytest.raises(SettingsInvalid):
        open_source(small)
    flat = np.full((10, 1, 8, 8), 7, np.uint8)
    with pytest.raises(InputError, match="nothing varies"):
        normalisation(small, array_source("flat", flat, flat))


def fill(root, dtype, count=16, channels=1):
    """Pictures of 32 x 32 of all that 8 bits hold, brought to a type; as .npy."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, channels)) * DTYPES[dtype]
        np.save(root / f"{dtype}-{number:02}.npy", pixels.astype(dtype))
    return root


def source(root, **settings):
    said = []
    return folder_source(TrainConfig(kind="pictures", images=root, **settings), say=said.append), said


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_range_of_8_bits_is_refused_for_other_types(tmp_path, dtype):
    """Named before anything is trained, with the range that would fit, and left out with skip_bad."""
    root = fill(tmp_path / "in", dtype, count=3)
    with pytest.raises(PictureMisfit) as caught:
        source(root, range="0:255")
    assert f"{dtype}-00.npy" in caught.value.detail
    assert f"--range {'0:65535' if dtype == 'uint16' else '0:1'}" in caught.value.hint
    fill(root, "uint8")
    found, said = source(root, range="0:255", skip_bad=True)
    assert len(found.train) + len(found.held_out) == 16
    assert sum(dtype in line and "takes 0 to 255" in line for line in said) == 3


def test_colours_that_are_dropped_are_said(tmp_path):
    """Training may convert colour to grey on request; it says how many pictures that is."""
    fill(fill(tmp_path / "in", "uint8"), "uint8", count=4, channels=3)
    grey = np.arange(1024, dtype=np.uint16).reshape(32, 32, 1) % 256
    (tmp_path / "in" / "grey.png").write_bytes(encode_png(grey))
    _, said = source(tmp_path / "in", channels=1, range="0:255")
    assert any(line.startswith("4 RGB pictures are made grey") for line in said)


def test_a_folder_of_points_is_no_folder_of_pictures(tmp_path):
    """A file alone is named with what it holds; in a folder it is one of the bad files."""
    np.save(tmp_path / "points.npy", np.zeros((50, 2)))
    with pytest.raises(KindMismatch, match=r"points\.npy holds points, 50 x 2"):
        source(tmp_path / "points.npy")
    fill(tmp_path, "uint8")
    with pytest.raises(ImageUnreadable, match=r"(?s)1 of 17 .*points\.npy: .*holds points"):
        source(tmp_path)


def test_a_models_own_folder_is_split_by_content_and_comes_in_its_units(tmp_path):
    """Nothing is in both parts, and values are in [-1, 1]."""
    for number in range(40):
        path = tmp_path / f"{number:02}.png"
        path.write_bytes(encode_png(np.full((32, 32, 3), number, np.uint8)))
    found = own_samples(pretrained("satellite").manifest, str(tmp_path), 100, 100)
    parts = [
        {round((float(x) + 1) * 127.5) for x in part[:, 0, 0, 0]} for part in (found.train, found.held_out)
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(range(40))
    assert found.train.shape[1:] == (3, 32, 32)


def test_a_models_own_points_are_split_too(tmp_path):
    """Those of a domain are drawn; a file's are never in both parts."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    for which in (None, tmp_path / "x.npy"):
        found = own_samples(manifest(), which, 20, 10)
        assert (len(found.train), len(found.held_out)) == (20, 10)
        assert len(np.unique(found.mixed(), axis=0)) == 30


def test_a_domain_that_does_not_ship_needs_data(tmp_path, monkeypatch):
    """Also a model that is only called after a domain, as one of moons.npy is. `./relief` is a folder."""
    points = manifest().model_copy(update={"normalisation": Normalisation(mean=5.0, std=2.0)})
    assert points.domain == "moons"
    pictures = pretrained("brain-t1").manifest
    pictures = pictures.model_copy(update={"data": DataNote(source="90 pictures of a user's folder")})
    for own in (points, pictures, manifest().model_copy(update={"domain": "mine"})):
        with pytest.raises(UsageError, match="data that do not ship") as refused:
            own_samples(own, None, 20, 10)
        assert "folder" in refused.value.hint
    with pytest.raises(FileMissing, match="nowhere"):
        own_samples(pretrained("satellite").manifest, tmp_path / "nowhere", 20, 10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relief").mkdir()
    with pytest.raises(UsageError) as told:
        own_samples(pretrained("relief").manifest, "relief", 20, 10)
    assert "./relief" in told.value.hint
    with pytest.raises(InputError, match="brain-t1"):
        own_samples(pretrained("relief").manifest, "brain-t1", 20, 10)


def test_evenly_spaced_pictures_begin_with_the_first_and_end_with_the_last():
    """All of them where there are few."""
    x = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    assert spaced(x, 4).ravel().tolist() == [0, 3, 6, 9]
    assert len(spaced(x, 20)) == 10
