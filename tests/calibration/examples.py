"""A calibration between two institutions, for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from ddib_fed.calibration.record import (
    CalibratedSide,
    Calibration,
    Effect,
    Making,
    Side,
    Signature,
    SignedCalibration,
    units_digest,
)
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.security.pki import TlsCredentials

UNITS = units_digest(Normalisation())


def figure(value: float) -> Figure:
    return Figure(value=value, low=value - 0.01, high=value + 0.01)


def calibration(**changes: Any) -> Calibration:
    """A rotation that swaps two channels, from north/photos to south/maps."""
    now = datetime.now(UTC)
    content: dict[str, Any] = {
        "kind": "rotation",
        "source": CalibratedSide(institution="north.example", domain="photos", units_sha256=UNITS),
        "target": CalibratedSide(institution="south.example", domain="maps", units_sha256=UNITS),
        "map": ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1))),
        "made": Making(
            method="aggregates",
            source_pictures=2_000,
            target_pictures=2_000,
            crossed_bytes=4_096,
            epsilon=1.0,
            delta=1e-5,
            created=now,
        ),
        "effect": Effect(distance_before=figure(1.0), distance=figure(0.3), margin=figure(0.2)),
        "expires": now + timedelta(days=365),
    }
    return Calibration(**(content | changes))


def sign(calibration: Calibration, side: Side, credentials: TlsCredentials, *, now: datetime) -> Signature:
    """The signature of one side."""
    signed = SignedCalibration(calibration=calibration).sign(side, credentials, now=now)
    made = signed.source if side == "source" else signed.target
    assert made is not None
    return made
