"""What the source node records of a translated picture."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.data.decoding import ImageLimits
from ddib_fed.data.pictures import encode_png
from ddib_fed.data.shipped import load_shipped
from ddib_fed.engine.local_party import ServingParty
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.evaluation.samples import PictureSamples
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.units import ChannelMap


@pytest.fixture
def samples():
    engine = ServingParty(pretrained("satellite"), device="cpu", threads=1)
    yield PictureSamples(engine.model, ImageLimits())
    engine.close()


def figures(samples, source, translated, rotation=None):
    """The record of one picture (C, H, W) in [-1, 1] and its translation."""
    given = samples.read(encode_png(to_pixels(source[None])[0]), "resize")
    side = picture_rule(pretrained("relief").manifest)
    came = samples.answer(encode_png(to_pixels(translated[None])[0]), side, 1)
    return samples.translation(came, side, given, rotation).figures["picture"]


@pytest.mark.slow
def test_a_coast_that_became_another_sea_is_doubtful(samples):
    """By the thresholds in the source's bundle, which stand beside the figures; the true relief is not doubtful."""
    source, truth = load_shipped("satellite").test, load_shipped("relief").test
    kept, lost = figures(samples, source[8], truth[8]), figures(samples, source[8], truth[120])
    assert (kept["structure_doubtful"], lost["structure_doubtful"]) == (False, True)
    assert lost["edge_correlation"] < lost["least_edge_correlation"] < kept["edge_correlation"]
    assert figures(samples, source[8], np.full_like(truth[8], -0.2))["structure_doubtful"]


@pytest.mark.slow
def test_land_and_sea_exchanged_is_doubtful_under_a_calibration(samples):
    """The same coast: its edges agree, so that without a calibration nothing is seen."""
    source, truth = load_shipped("satellite").test[8], load_shipped("relief").test[8]
    units = pretrained("relief").manifest.normalisation
    channels = units.apply(truth[None])
    turned = units.undo(2 * channels.mean(axis=(2, 3), keepdims=True) - channels).clip(-1, 1)[0]
    own = pretrained("satellite").manifest.normalisation.apply(source[None])
    left, _, right = np.linalg.svd(np.einsum("nihw,njhw->ij", channels, own).astype(np.float64))
    rotation = ChannelMap(rotation=tuple(map(tuple, (left @ right).tolist())))
    plain, kept, lost = (
        figures(samples, source, turned),
        figures(samples, source, truth, rotation),
        figures(samples, source, turned, rotation),
    )
    assert (plain["structure_doubtful"], "agreement" in plain) == (False, False)
    assert (kept["structure_doubtful"], lost["structure_doubtful"]) == (False, True)
    assert lost["agreement"] < 0 < lost["least_agreement"] < kept["agreement"]
