"""The limits of the messages of common.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ddib_fed.errors import SettingsInvalid
from ddib_fed.wire.contracts.guidance import MAX_GUIDANCE
from ddib_fed.wire.limits.kinds import Inner, Limit, Many, Number, Text
from ddib_fed.wire.limits.shared import (
    ANY,
    CALIBRATION,
    DIGEST,
    ERROR,
    FIGURE,
    GUIDANCE,
    INSTITUTION,
    JOINER,
    MAX_EVALUATIONS,
    MOST_LINES,
    NAME,
    OPENED,
    SIZE,
    TENSOR,
    TERMS,
    setting,
)

MESSAGES: Final[Mapping[str, Mapping[str, Limit]]] = {
    "Chunk": {"index": JOINER, "data": JOINER},  # not read here: it would be copied
    "Trailer": {"chunks": JOINER},
    "AuditHead": {"lines": Number(1, MOST_LINES), "sha256": DIGEST},
    "TensorHeader": dict.fromkeys(("shape", "size_bytes", "sha256"), TENSOR),
    "FileHeader": dict.fromkeys(("media_type", "size_bytes", "sha256"), OPENED),
    "PictureTerms": dict.fromkeys(("low", "high", "bits"), TERMS),
    "SolverSettings": {
        "solver": Text(32, error=SettingsInvalid),
        "order": setting(0, 4),
        "evaluations": setting(1, MAX_EVALUATIONS),
        "grid": Text(64, error=SettingsInvalid),
        "depth": setting(0, 1),
        "encoder": Text(32, error=SettingsInvalid),
    },
    "GuidanceSettings": {
        **dict.fromkeys(("guidance", "classifier_scale"), setting(0, MAX_GUIDANCE)),
        "clip": ANY,
    },
    "GuidanceTerms": dict.fromkeys(
        ("max_guidance", "max_classifier_scale", "classifier_sha256", "classifier_classes", "clip"),
        GUIDANCE,
    ),
    "CalibrationTerms": dict.fromkeys(("sha256", "kind", "expires"), CALIBRATION),
    "LatentStatistics": {
        **dict.fromkeys(("mean", "kurtosis", "correlation"), FIGURE),
        "std": ERROR,
        "count": SIZE,
    },
    "ErrorDetail": {
        "reason": NAME,
        "sentence": Text(200),
        "incident": Text(32),
        "retry_after_ms": ANY,  # capped where it is used
        "facts": Many(Text(200), 16),
        "differences": Many(Inner(), 16),
        "institution": INSTITUTION,
    },
    "FieldDifference": dict.fromkeys(("field", "source", "target", "remedy"), Text(200)),
}
