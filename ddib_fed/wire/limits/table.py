"""The limits of every field of every message, in one table.

Each field has its limit, or the name of its check, in the module that is named as the proto; a test fails for a missing
field. The comments in the protos and docs/protocol.md state the same limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ddib_fed.wire.limits import admin, calibration, common, decoding, identity, translation
from ddib_fed.wire.limits.kinds import Limit

FIELDS: Final[Mapping[str, Mapping[str, Limit]]] = MappingProxyType(
    {
        name: limits
        for proto in (common, decoding, translation, calibration, identity, admin)
        for name, limits in proto.MESSAGES.items()
    }
)
"""The limit of each field, by the names of the message and the field; docs/protocol.md and the protos state them."""
