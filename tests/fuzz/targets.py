"""Every parser of bytes that come from elsewhere, as a function of bytes that may fail in one way only."""

from collections.abc import Mapping
from typing import Final

from tests.fuzz import files, models, trust, wire
from tests.fuzz.target import Target

TARGETS: Final[Mapping[str, Target]] = {**wire.TARGETS, **files.TARGETS, **models.TARGETS, **trust.TARGETS}
