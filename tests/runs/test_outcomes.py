"""Records of translations in one process."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.bridge.arrays import Asked, Stages
from ddib_fed.bridge.local_party import open_party
from ddib_fed.metrics.pictures import picture_rule
from ddib_fed.models.manifest import StructureThresholds
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.runs.outcomes import PictureOutcomes
from ddib_fed.samples.fitting import fit_picture
from ddib_fed.samples.images import decode_image, encode_png
from tests.runs.tiny_models import tiny
from tests.trust.calibrations.examples import calibration

SWAP = ChannelMap(rotation=((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))


@pytest.mark.parametrize("under", [None, calibration(map=SWAP)])
def test_exchanged_colours_are_doubtful_under_a_calibration_alone(under) -> None:
    """One is translated as the calibration says, one with light and dark exchanged: their edges are alike."""
    least = StructureThresholds(
        edge_correlation=0.2, mutual_information=0.1, chance_edge_correlation=0.0, chance_mutual_information=0.1,
        quantile=0.95, count=9, basis="chance", agreement=0.4,
    )  # fmt: skip
    source, target = (open_party(tiny(name, channels=3, structure=least)) for name in ("photos", "maps"))
    rule = picture_rule(source.model.manifest)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    given = [fit_picture(decode_image(encode_png(pixels)), rule) for _ in range(2)]
    mapped = SWAP.apply(np.stack([each.original for each in given])).astype(np.float32)
    mapped[1] *= -1
    outcomes = PictureOutcomes(source, target, calibration=under)
    latent = np.random.default_rng(1).normal(size=mapped.shape).astype(np.float32)
    records = [outcomes.started(each, Asked()) for each in given]
    found = [each.record.picture for each in outcomes(given, Stages((0, 1), latent, mapped), records)]
    assert [each.structure_doubtful for each in found] == [False, under is not None]
    if under is None:
        assert found[0].agreement is found[0].least_agreement is None
    else:
        assert [each.agreement for each in found] == pytest.approx([1.0, -1.0])
        assert found[0].least_agreement == 0.4
