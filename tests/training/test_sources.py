"""Pictures and points are found, split and refused by name, before anything is trained."""

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.datasets import uniforms
from ddib_fed.errors import (
    FileMissing,
    InputError,
    NotFinite,
    PointsUnreadable,
    SettingsInvalid,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.manifest import DataNote
from ddib_fed.models.units import Normalisation
from ddib_fed.training.points import points_source
from ddib_fed.training.sources import array_source, normalisation, open_source, own_samples
from tests.models.examples import manifest
from tests.training.examples import blobs

GOOD = blobs(12)


def test_settings_that_do_not_fit_the_pictures_are_refused(small):
    plain = array_source("plain", GOOD, GOOD[:2])
    for change in ({"size": 16}, {"classes": "folders"}):
        with pytest.raises(SettingsInvalid):
            open_source(small.model_copy(update=change), plain)
    flat = np.full((10, 1, 8, 8), 7, np.uint8)
    with pytest.raises(InputError, match="nothing varies"):
        normalisation(small, array_source("flat", flat, flat))


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


# Points of one's own are normalised, split and checked; a domain has no end


@pytest.fixture
def save(tmp_path):
    def write(points):
        path = tmp_path / "points.npy"
        np.save(path, points)
        return path

    return write


@pytest.fixture
def good():
    return np.random.default_rng(0).normal(3, 2, (1_000, 3))


def test_held_out_points_are_never_trained_on(save, good):
    source = points_source(save(good), 2048)
    drawn = source.take(uniforms(0, 0, 50_000, 4))
    kept = {row.tobytes() for row in drawn}
    held = {row.tobytes() for row in source.held_out}
    assert len(held) == 100
    assert len(kept) == 900
    assert not kept & held


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda p: p[:50], InputError, "50 points"),
        (lambda p: np.where(p == p[0, 0], np.nan, p), NotFinite, "points.npy"),
        (lambda p: p * [1, 0, 1], InputError, "column 1"),
        (lambda p: np.full_like(p, 4.0), InputError, "column 0, 1, 2"),
        (lambda p: p * [1, 0, 1] + [0, 1e4, 0], InputError, "column 1"),
        (lambda p: p[:, 0], ShapeMismatch, "points.npy"),
        (lambda p: p.astype(object), PointsUnreadable, "points.npy"),
    ],
)
def test_points_that_cannot_be_learned_are_refused_by_name(save, good, change, error, said):
    with pytest.raises(error) as caught:
        points_source(save(change(good)), 10)
    assert said in caught.value.detail
