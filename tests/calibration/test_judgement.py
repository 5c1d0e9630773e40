"""Which calibrations are refused for their figures."""

import pytest

from ddib_fed.calibration.fit import LEAST_MARGIN, judge
from ddib_fed.calibration.record import Effect
from ddib_fed.errors import CalibrationIneffective
from ddib_fed.models.sidecars import Figure


def effect(distance: float, margin: float) -> Effect:
    values = {"distance_before": 1.0, "distance": distance, "margin": margin}
    return Effect(**{name: Figure(value=v, low=v - 0.01, high=v + 0.01) for name, v in values.items()})


def test_a_better_map_far_from_the_next_passes() -> None:
    """Both intervals are on the right side."""
    judge(effect(0.3, LEAST_MARGIN + 0.02))


@pytest.mark.parametrize(
    ("distance", "margin", "says"),
    [(0.985, 0.5, "not better than none"), (0.3, LEAST_MARGIN, "another optimum"), (0.3, -0.1, "mirrored")],
)
def test_no_gain_or_a_near_mirror_is_refused_with_its_figures(distance, margin, says) -> None:
    """The bounds of the intervals count, not the values."""
    with pytest.raises(CalibrationIneffective, match=says) as refused:
        judge(effect(distance, margin))
    assert "anchors" in refused.value.hint
