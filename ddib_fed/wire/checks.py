"""The checks that parts of a contract share."""

from __future__ import annotations

from ddib_fed.errors import MessageInvalid

MAX_CLASSES = 1_000_000
DIGEST_BYTES = 32


def require(ok: bool, field: str, detail: str) -> None:
    if not ok:
        raise MessageInvalid(f"{field}: {detail}", facts={"field": field})


def require_number(value: float, low: float, high: float, field: str) -> None:
    # Written so that NaN fails.
    require(low <= value <= high, field, f"must be from {low:g} to {high:g}")
