"""The limits of the messages of calibration.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ddib_fed.wire.limits.kinds import Bytes, Choice, Inner, Limit, Number, Text
from ddib_fed.wire.limits.shared import LAST_MOMENT, NAME

MESSAGES: Final[Mapping[str, Mapping[str, Limit]]] = {
    "GetAggregateRequest": {"domain": NAME},
    "GetAggregateResponse": {"aggregate": Bytes(1, 64 << 10)},
    "GetUnitsRequest": {"domain": NAME},
    "GetUnitsResponse": {"units": Bytes(1, 4 << 10)},
    "CalibrationSignature": {
        "signed_at": Number(0, LAST_MOMENT),
        "certificate": Text(16 << 10),
        "signature": Bytes(1, 256),
    },
    "SignCalibrationRequest": {"calibration": Bytes(1, 16 << 10), "source": Inner(required=True)},
    "SignCalibrationResponse": {"state": Choice(), "target": Inner()},
}
