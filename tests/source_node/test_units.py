"""What a client's file is to the source node: the model's samples, and the picture as it was given."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.data.decoding import ImageLimits
from ddib_fed.engine.party import Decoded
from ddib_fed.evaluation.samples import samples_of
from ddib_fed.models.manifest import PictureFormat
from tests.client.scripted_source import npy
from tests.node.picture_examples import SIZE, noise, pictures_engine

CT = PictureFormat(low=-1000.0, high=2000.0, bits=16)


@pytest.fixture(scope="module")
def scanner():
    made = pictures_engine("scans", form=CT)
    yield made
    made.close()


def scan(metal: float = 0.0) -> np.ndarray:
    """(16, 16) int16 Hounsfield units, with four pixels of `metal` instead where there is some."""
    values = (noise() * 1500 + 500).astype(np.int16)
    if metal:
        values[4:6, 4:6] = metal
    return values


def test_a_round_trip_is_measured_against_the_picture_as_given(scanner) -> None:
    """Metal of 3071 is clipped to 2000 for the model: what comes back perfectly else has that error, not none."""
    samples = samples_of(scanner.model, ImageLimits(), 1000)
    given = samples.read(npy(scan(metal=3071)), "resize")
    assert given.picture.clipped == 4
    assert given.samples.max() == 1
    perfect = Decoded(0, given.samples, given.samples, 0.0)
    figures = samples.returned(given, perfect).figures["picture"]
    assert figures["cycle_mse"] == pytest.approx(4 / SIZE**2 * (2 * 1071 / 3000) ** 2, rel=1e-4)
    assert figures["cycle_psnr"] < 30
    whole = samples.read(npy(scan()), "resize")
    assert whole.original is not None
    assert (
        whole.picture.clipped,
        samples.returned(whole, Decoded(0, whole.samples, whole.samples, 0.0)).figures,
    ) == (
        0,
        {"picture": {"cycle_mse": 0.0, "cycle_psnr": 120.0}},
    )
