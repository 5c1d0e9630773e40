"""The limits of the messages of identity.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ddib_fed.wire.limits.kinds import Bytes, Limit, Text

MESSAGES: Final[Mapping[str, Mapping[str, Limit]]] = {
    "RenewRequest": {"certificate_request": Bytes(1, 8 << 10)},
    "RenewResponse": dict.fromkeys(("certificate", "roots", "recovery"), Text(64 << 10)),
}
