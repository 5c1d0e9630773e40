"""Pictures that cannot be learned from are refused by name, before anything else happens."""

import numpy as np
import pytest
from pydantic import ValidationError

from ddib_fed.errors import InputError, NotFinite, SettingsInvalid, ShapeMismatch
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.sources import array_source, normalisation, open_source
from tests.training.pictures.examples import blobs

GOOD = blobs(12)
WIDE = np.zeros((12, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("train", "held_out", "error"),
    [
        (GOOD[:4], GOOD[4:], InputError),
        (GOOD, GOOD[:0], ShapeMismatch),
        (GOOD, GOOD[:2, :1], ShapeMismatch),
        (GOOD[:, :2], GOOD[:2, :2], ShapeMismatch),
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


def test_pictures_in_which_nothing_varies_are_refused(tiny):
    flat = np.full((10, 1, 8, 8), 7, np.uint8)
    with pytest.raises(InputError, match="nothing varies"):
        normalisation(tiny, array_source("flat", flat, flat))


@pytest.mark.parametrize(
    ("change", "with_source"),
    [({}, False), ({"domain": "relief"}, True), ({"size": 16}, True), ({"classes": "folders"}, True)],
)
def test_settings_that_do_not_fit_the_pictures_are_refused(tiny, change, with_source):
    plain = array_source("plain", GOOD, GOOD[:2])
    with pytest.raises(SettingsInvalid):
        open_source(tiny.model_copy(update=change), plain if with_source else None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "huge"},
        {"domain": "relief", "images": "x"},
        {"steps": 5, "time_s": 5},
        {"label_dropout": 0.1},
        {"crop": True},
        {"domain": "relief", "range": "0:1"},
        {"size": 4},
        {"learning_rat": 1e-3},
    ],
)
def test_contradictions_and_unknown_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainConfig(kind="pictures", **wrong)
