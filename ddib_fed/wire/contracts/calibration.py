"""The calibration that a contract names; the object itself has crossed before, signed by both institutions."""

from __future__ import annotations

from dataclasses import dataclass

from ddib_fed.wire.canonical import DIGEST_BYTES, Value, require, require_number

CALIBRATION_KINDS = ("rotation", "tone", "colour-map")
"""The kinds of docs/protocol.md."""
LAST_MOMENT = 253_402_300_799
"""The end of the year 9999 in Unix seconds."""


@dataclass(frozen=True, slots=True)
class CalibrationTerms:
    """The calibration under which a source encodes; the fields are those of the message of this name.

    Raises:
        MessageInvalid: A field is outside what docs/protocol.md allows; `facts["field"]` names it.
    """

    sha256: bytes
    kind: str
    expires: int

    def __post_init__(self) -> None:
        require(len(self.sha256) == DIGEST_BYTES, "calibration.sha256", "must be 32 bytes")
        kinds = ", ".join(CALIBRATION_KINDS)
        require(self.kind in CALIBRATION_KINDS, "calibration.kind", f"must be one of {kinds}")
        require_number(self.expires, 1, LAST_MOMENT, "calibration.expires")

    def __str__(self) -> str:
        return f"{self.kind} {self.sha256.hex()}"

    def values(self) -> dict[str, Value]:
        """The fields as they enter the digest."""
        return {"expires": self.expires, "kind": self.kind, "sha256": self.sha256.hex()}
