"""A calibration between two institutions, and two domains of one palette, which is turned."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from ddib_fed.calibration.aggregate import Aggregate, Cells, Floats, Numbers, count_array
from ddib_fed.calibration.record import (
    CalibratedSide,
    Calibration,
    Effect,
    Making,
    Side,
    Signature,
    SignedCalibration,
)
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.security import pki
from ddib_fed.security.pki import TlsCredentials
from tests.node.institutions import Institution

UNITS = Normalisation()


def figure(value: float) -> Figure:
    return Figure(value=value, low=value - 0.01, high=value + 0.01)


def calibration(**changes: Any) -> Calibration:
    """A rotation that swaps two channels, from north/photos to south/maps."""
    now = datetime.now(UTC)
    content: dict[str, Any] = {
        "kind": "rotation", "source": CalibratedSide(institution="north.example", domain="photos", units=UNITS),
        "target": CalibratedSide(institution="south.example", domain="maps", units=UNITS),
        "map": ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1))),
        "made": Making(method="aggregates", source_pictures=2_000, target_pictures=2_000, crossed_bytes=4_096,
                       epsilon=1.0, delta=1e-5, created=now),
        "effect": Effect(distance_before=figure(1.0), distance=figure(0.3), margin=figure(0.2)),
        "expires": now + timedelta(days=365),
    }  # fmt: skip
    return Calibration(**(content | changes))


def sign(calibration: Calibration, side: Side, credentials: TlsCredentials, *, now: datetime) -> Signature:
    """The signature of one side."""
    signed = SignedCalibration(calibration=calibration).sign(side, credentials, now=now)
    made = signed.source if side == "source" else signed.target
    assert made is not None
    return made


def signed(made: Calibration, north: Institution, south: Institution) -> SignedCalibration:
    """By the nodes of both."""
    now = datetime.now(UTC)
    source, target = (pki.load_identity(each.pki) for each in (north, south))
    half = SignedCalibration(calibration=made).sign("source", source, now=now)
    return half.sign("target", target, now=now)


PALETTE = Normalisation(std=0.3)
TURN = np.array([[0.0, 0.8, -0.6], [-1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
"""Orthogonal, far from the identity."""


def colours(count: int, seed: int) -> Numbers:
    """Colours (count, 3) in model units: four uneven clusters, so that no other rotation fits."""
    generator = np.random.default_rng(seed)
    centres = np.array([[-1.6, 0.3, -0.6], [1.2, 1.5, 0.0], [0.8, -1.7, 1.4], [0.0, 0.9, 2.0]])
    found = centres[generator.choice(4, count, p=[0.5, 0.25, 0.15, 0.1])]
    return found + generator.standard_normal((count, 3)) * [0.2, 0.3, 0.1]


def pictures(count: int, seed: int, turn: Numbers | None = None) -> np.ndarray:
    """Pictures (count, 3, 4, 4) in [-1, 1] of such colours."""
    found = colours(count * 16, seed)
    found = found if turn is None else found @ turn.T
    units = np.moveaxis(found.reshape(count, 4, 4, 3), -1, 1)
    return np.clip(PALETTE.undo(units.astype(np.float32)), -1, 1)


def make_aggregate(
    pictures: Floats,
    units: Normalisation,
    domain: str,
    *,
    epsilon: float = 1.0,
    cells: Cells | None = None,
    generator: np.random.Generator | None = None,
) -> Aggregate:
    return count_array(pictures, units, domain, epsilon=epsilon, cells=cells).noised(epsilon, 1e-5, generator)


def aggregate(turn: Numbers = TURN) -> Aggregate:
    return make_aggregate(pictures(2000, 1, turn), PALETTE, "relief", generator=np.random.default_rng(5))
