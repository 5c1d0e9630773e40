"""Maps of channels: each is undone, and what cannot be undone is refused or goes to the nearest value."""

import numpy as np
import pytest
from pydantic import ValidationError

from ddib_fed.calibration.record import units_digest
from ddib_fed.models.units import ChannelMap, Normalisation

FLIP = ((-1.2, -1.5), (-0.6, -0.9), (-0.6, 2.0), (0.4, 1.0), (1.2, -0.4))
"""Background rises; above -0.6 the tissues fall."""
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
BENT = np.concatenate([[[0.2]] * 3, TURN, np.random.default_rng(4).normal(0, 0.05, (3, 6))], axis=1)


def rows(matrix):
    return tuple(map(tuple, np.asarray(matrix).tolist()))


@pytest.mark.parametrize(
    ("made", "atol"),
    [
        (ChannelMap(rotation=rows(TURN)), 1e-12),
        (ChannelMap(quadratic=rows(BENT)), 1e-4),
        (ChannelMap(quadratic=((0.3, -0.8, 0.05),)), 1e-4),
        (ChannelMap(curve=FLIP), 1e-12),
    ],
)
def test_a_map_is_undone(made, atol):
    """Whatever the number of dimensions after the channels."""
    for shape in ((5, made.channels), (2, made.channels, 6, 4)):
        u = np.random.default_rng(0).uniform(-1.1, 1.1, shape).astype(np.float32)
        v = made.apply(u)
        assert v.shape == u.shape
        assert v.dtype == np.float64
        assert np.allclose(made.undo(v), u, atol=atol)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation": ((1.0,),), "curve": FLIP},
        {"rotation": ((1.0, 0.0), (0.0, 1.0))},
        {"rotation": rows(2 * TURN)},
        {"quadratic": ((0.0, 101.0, 0.0),)},
        {"curve": ((1.0, 0.0), (0.0, 1.0))},
        {"curve": ((0.0, 0.0), (1.0, 1.0), (2.0, 0.5))},
        {"curve": ((0.0, 0.0), (1.0, 1.0), (1.0, 0.9), (2.0, 3.0))},
    ],
)
def test_what_is_no_map_is_refused(wrong):
    """Of no kind or two, of another shape, not orthogonal, too steep, or a curve that cannot be undone."""
    with pytest.raises(ValidationError):
        ChannelMap(**wrong)


def test_calibrated_units_map_after_mean_and_deviation_and_come_back():
    """A calibration is bound to the plain units."""
    plain = Normalisation(mean=0.1, std=0.5)
    made = plain.model_copy(update={"calibrated": ChannelMap(curve=FLIP)})
    raw = np.random.default_rng(1).uniform(-0.4, 0.6, (2, 1, 4, 4)).astype(np.float32)
    assert np.allclose(made.apply(raw), made.calibrated.apply(plain.apply(raw)), atol=1e-6)
    assert made.apply(raw).dtype == made.undo(raw).dtype == np.float32
    assert np.allclose(made.undo(made.apply(raw)), raw, atol=1e-6)
    assert made.plain == plain
    assert units_digest(made) == units_digest(plain)
    with pytest.raises(ValidationError, match="channels"):
        Normalisation(mean=(0.0,) * 3, calibrated=ChannelMap(curve=FLIP))
