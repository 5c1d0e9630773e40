"""Which delivered pictures `ddib translate` and `ddib job fetch` call doubtful, and what they say of them."""

from __future__ import annotations

import pytest

from ddib_fed.engine.record import PictureFigures, Translation

FIGURES = PictureFigures(
    height=32, width=32, size_rule="resize", low=0, high=255, cycle_mse=1e-4, cycle_psnr=40.0, edge_correlation=0.5,
    mutual_information=1.0, least_edge_correlation=0.19, least_mutual_information=0.32, structure_doubtful=False,
)  # fmt: skip


LOST = {"edge_correlation": 0.07, "structure_doubtful": True}
UNKNOWN = {"least_edge_correlation": None, "least_mutual_information": None, "structure_doubtful": None}


@pytest.mark.parametrize(
    ("changes", "doubts"),
    [
        ({}, ()),
        (LOST, ("structure",)),
        ({"cycle_psnr": 12.0}, ("cycle_psnr",)),
        (LOST | {"cycle_psnr": float("nan")}, ("cycle_psnr", "structure")),
        (LOST | {"cycle_psnr": None}, ("structure",)),
        (UNKNOWN, ()),
        (UNKNOWN | {"cycle_psnr": None}, None),
    ],
)
def test_a_picture_is_doubtful_by_its_round_trip_or_by_its_structure(changes, doubts):
    """A round trip of 40 dB does not excuse lost structure; a node or model that says nothing marks nothing."""
    judged = Translation(picture=FIGURES.model_copy(update=changes)).judged(30.0)
    assert judged.doubts == doubts
    assert judged.doubtful is (None if doubts is None else bool(doubts))
