"""Proposals from a noised aggregate: the map, its figures, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.calibration import fit
from ddib_fed.calibration.fit import (
    FOLDED,
    LEAST_MARGIN,
    LEAST_SLOPE,
    Optimum,
    Search,
    as_map,
    colour_distance,
    degrees,
    effect_of,
    fit_colour_map,
    judge,
    least_slopes,
    propose,
    unfolded_fit,
)
from ddib_fed.errors import CalibrationIneffective, InputError
from ddib_fed.models.units import ChannelMap
from tests.calibration.two_worlds import TURN, UNITS, aggregate, colours, pictures


@pytest.fixture(autouse=True)
def _few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "FINE", 1000)
    monkeypatch.setattr(fit, "KEPT", 6)


@pytest.mark.slow
def test_a_rotation_is_proposed_with_its_figures() -> None:
    found = propose(pictures(300, 2), UNITS, aggregate(), "rotation")
    assert degrees(found.map.matrix, TURN) < 12
    effect = found.effect
    assert not effect.forced
    assert effect.distance.high < 0.5 * effect.distance_before.low
    assert effect.margin.low > LEAST_MARGIN
    for figure in (effect.distance, effect.distance_before, effect.margin):
        assert figure.low < figure.value < figure.high


@pytest.mark.slow
def test_a_calibration_that_the_model_has_does_not_count() -> None:
    held = UNITS.model_copy(
        update={"calibrated": ChannelMap(rotation=((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))}
    )
    first, second = (propose(pictures(60, 2), units, aggregate(), "rotation").map for units in (UNITS, held))
    assert first == second


@pytest.mark.slow
def test_what_the_colours_need_no_map_for_is_refused_unless_forced() -> None:
    """The two palettes are one: turning it is not better than leaving it."""
    same = aggregate(turn=np.eye(3))
    with pytest.raises(CalibrationIneffective, match="not better than none"):
        propose(pictures(300, 2), UNITS, same, "rotation")
    assert propose(pictures(300, 2), UNITS, same, "rotation", force=True).effect.forced


@pytest.mark.slow
def test_colour_maps_follow_the_transport_and_come_back() -> None:
    pytest.importorskip("ot")
    source = colours(600, 2)
    bent = colours(600, 3) @ TURN.T
    bent = bent + 0.12 * bent**2
    found = fit_colour_map(source, bent, TURN)
    assert colour_distance(found.apply(source), bent) < 0.8 * colour_distance(source @ TURN.T, bent)
    assert np.abs(found.undo(found.apply(source)) - source).max() < 1e-3


def test_a_map_that_would_fold_is_drawn_back_to_the_rotation() -> None:
    u = np.random.default_rng(0).standard_normal((500, 3))
    found = unfolded_fit(u, np.stack([u[:, 0] ** 2, u[:, 1], u[:, 2]], axis=1), np.eye(3))
    slopes = least_slopes(found.matrix, u)
    assert (slopes < LEAST_SLOPE).mean() <= FOLDED
    assert np.abs(found.matrix[0, 4]) > 0.02


@pytest.mark.parametrize(
    ("count", "channels", "kind", "said"),
    [
        (19, 3, "rotation", "at least 20"),
        (30, 1, "rotation", "of 3 channels"),
        (30, 3, "tone", "from anchors"),
    ],
)
def test_what_cannot_be_fitted_is_said(count: int, channels: int, kind: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        propose(pictures(count, 2)[:, :channels], UNITS, aggregate(), kind)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_mirrored_optimum_is_refused_by_its_own_figures() -> None:
    """Whoever signs the other optimum as the best one states a margin below zero."""
    own, target = colours(3000, 2).reshape(300, 10, 3), colours(3000, 3) @ TURN.T
    mirror = np.diag([1.0, 1.0, -1.0]) @ TURN
    right, wrong = Optimum(TURN, 0.0), Optimum(mirror, 1.0)
    judge(effect_of(Search(right, wrong), as_map(TURN), own, target))
    exchanged = effect_of(Search(wrong, right), as_map(mirror), own, target)
    assert exchanged.margin.high < 0
    with pytest.raises(CalibrationIneffective):
        judge(exchanged)
